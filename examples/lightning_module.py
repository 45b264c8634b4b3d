"""CLSD as a LightningModule; the student alone is saved, as an ordinary EDSR.

trainer = lightning.Trainer(max_steps=300_000, precision="bf16-mixed")
trainer.fit(SuperResolution(scale=2), loader, val_loader)  # of (LR, HR), values in 0..255
torch.save(module.model.student.state_dict(), "edsr.pt")
"""

import lightning
import torch

import clsd_fast


class SuperResolution(lightning.LightningModule):
    def __init__(self, scale=2, num_blocks=16, channels=64, taps=(5, 10, 15), learning_rate=2e-4):
        super().__init__()
        self.save_hyperparameters()
        self.model = clsd_fast.CLSD(clsd_fast.EDSR(scale, num_blocks, channels), taps)

    def forward(self, lr):
        return self.model.student(lr)

    def training_step(self, batch, batch_idx):
        losses = self.model(*batch).losses
        self.log_dict(losses, prog_bar=True)
        return losses["total"]

    def validation_step(self, batch, batch_idx):
        lr, hr = batch
        error = (self(lr).clamp(0, 255) - hr).square().mean()
        self.log("psnr", 10 * (255**2 / error).log10(), prog_bar=True)

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), self.hparams.learning_rate)
