"""LoRS: masked low-rank adaptation at the cost of plain LoRA."""
