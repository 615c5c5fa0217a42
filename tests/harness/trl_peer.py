"""The peer: TRL's SFTTrainer on given token tensors, started with one process a rank.

    python -m torch.distributed.run --nproc-per-node 2 tests/harness/trl_peer.py job.json

``job.json`` holds ``model`` (folder), ``rows`` (a JSON-lines file of ``input_ids``, ``labels`` and
``lengths``), ``packed``, ``micro_batch_size``, ``accumulation``, ``steps``, ``learning_rate``,
``lora`` (null or ``{r, alpha}``) and ``out``, where rank 0 leaves the list of logged steps.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("DO_NOT_TRACK", "1")


def main(job_file: str) -> None:
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    job = json.loads(Path(job_file).read_text())
    torch.set_num_threads(1)
    rows = [json.loads(line) for line in Path(job["rows"]).read_text().splitlines()]
    columns = {"input_ids": [r["input_ids"] for r in rows], "labels": [r["labels"] for r in rows]}
    if job["packed"]:
        columns["seq_lengths"] = [r["lengths"] for r in rows]
    peft_config = None
    if job.get("lora"):
        from peft import LoraConfig

        peft_config = LoraConfig(
            r=job["lora"]["r"],
            lora_alpha=job["lora"]["alpha"],
            target_modules="all-linear",
            task_type="CAUSAL_LM",
        )

    trainer = SFTTrainer(
        model=AutoModelForCausalLM.from_pretrained(job["model"], dtype=torch.float32),
        args=SFTConfig(
            output_dir=str(Path(job["out"]).parent / "peer"),
            per_device_train_batch_size=job["micro_batch_size"],
            gradient_accumulation_steps=job["accumulation"],
            max_steps=job["steps"],
            learning_rate=job["learning_rate"],
            lr_scheduler_type="constant",
            weight_decay=0.0,
            max_grad_norm=1.0,
            logging_steps=job["logging_steps"],
            logging_first_step=True,
            save_strategy="no",
            report_to="none",
            bf16=False,
            use_cpu=True,
            gradient_checkpointing=False,
            train_sampling_strategy="sequential",
            packing=job["packed"],
            packing_strategy="bfd",
            max_length=None if not job["packed"] else max(len(r["input_ids"]) for r in rows),
            dataset_kwargs={"skip_prepare_dataset": True},
            disable_tqdm=True,
            seed=42,
        ),
        train_dataset=Dataset.from_dict(columns),
        processing_class=AutoTokenizer.from_pretrained(job["model"]),
        peft_config=peft_config,
    )
    trainer.train()
    if trainer.is_world_process_zero():
        logs = [entry for entry in trainer.state.log_history if "loss" in entry]
        Path(job["out"]).write_text(json.dumps(logs))
    # Ranks that leave while another still talks to them abort it.
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
    # Threads of torch may abort a process that ends in the usual way; all that counts is written.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1])
