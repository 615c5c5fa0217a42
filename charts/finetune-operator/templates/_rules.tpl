{{/* What the operator does in a namespace that it serves. Nothing else, and nothing of it to secrets. */}}
{{- define "finetune-operator.rules" -}}
- apiGroups: [finetune.dev]
  resources: [finetunejobs]
  # delete: ttlSecondsAfterFinished
  verbs: [get, list, watch, delete]
- apiGroups: [finetune.dev]
  resources: [finetunejobs/status]
  verbs: [update]
- apiGroups: [batch]
  resources: [jobs]
  verbs: [get, list, watch, create, delete]
- apiGroups: [kubeflow.org]
  resources: [pytorchjobs]
  verbs: [get, list, watch, create, delete]
- apiGroups: [""]
  resources: [pods]
  # delete: the pods of a child that is gone; never by force
  verbs: [list, watch, delete]
{{- if ne (toString .Values.settings.progressFromLogs) "false" }}
- apiGroups: [""]
  resources: [pods/log]
  # the last lines of a job's first pod, where the network keeps the operator from the pod
  verbs: [get]
{{- end }}
- apiGroups: [""]
  resources: [configmaps]
  verbs: [get, create, delete]
- apiGroups: [""]
  resources: [services]
  verbs: [get, create]
- apiGroups: [""]
  resources: [persistentvolumeclaims]
  # patch: a claim that was made for a job grows with spec.workspace.size, and keeps the names of the
  # folders of later jobs
  verbs: [get, list, watch, create, patch]
- apiGroups: [""]
  resources: [events]
  # list: why a pod does not start
  verbs: [list, create]
{{- end -}}
