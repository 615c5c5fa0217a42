"""Jobs in a cluster, as their user sees them: read with the user's own rights, through a kubeconfig."""
