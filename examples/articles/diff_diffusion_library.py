"""The first article's program (its section 5.2), with its imports and names, made right.

    python examples/articles/diff_diffusion_library.py DATA [--steps 1000] [--size 32] [--out runs/article]

DATA is a folder with train/ and val/ in it. What was mended, and why, is in docs/articles.md; in short: a training
loop needs a loss and an optimizer step, every batch draws its own noise levels, the noise of β is √β ε, and a
checkpoint is a folder that runs nothing when it is opened.
"""

import argparse
import os

import matplotlib.pyplot as plt
import torch
from torch.utils.data import DataLoader

from diff_diffusion.data import load_image_dataset
from diff_diffusion.models import DiffusionModel
from diff_diffusion.utils import load_model, sample

device = torch.device("cuda") if torch.cuda.is_available() else torch.device("cpu")
timesteps = 1000
beta_start = 0.0001
beta_end = 0.02
beta_schedule = "linear"
num_inference_steps = 50
checkpoint_interval = 500


def load_data(data_path, size):
    train_data = load_image_dataset(os.path.join(data_path, "train"), size=size)
    valid_data = load_image_dataset(os.path.join(data_path, "val"), size=size, channels=train_data.shape[0])
    return train_data, valid_data


def get_model(train_data):
    # The data say how many channels there are and what their statistics are; the betas are the article's.
    model = DiffusionModel.for_data(
        train_data,
        timesteps=timesteps,
        beta_start=beta_start,
        beta_end=beta_end,
        beta_schedule=beta_schedule,
        num_inference_steps=num_inference_steps,
    )
    return model.to(device)


def validate(model, valid_loader):
    model.eval()
    with torch.no_grad():
        losses = [model.loss(batch.to(device)).mean.item() for batch in valid_loader]
    model.train()
    return sum(losses) / len(losses)


def train_model(model, train_loader, valid_loader, optimizer, num_steps, out):
    model.train()
    step = 0
    while step < num_steps:
        for batch in train_loader:
            x = batch.to(device)
            # Every image of the batch gets a noise level of its own, and the loss is the error of the predicted noise.
            loss = model.loss(x).mean
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            step += 1
            if step % checkpoint_interval == 0 or step == num_steps:
                model.save(os.path.join(out, f"checkpoint_{step}"))
                print(
                    f"step {step}: loss {loss.item():.4f}, validation {validate(model, valid_loader):.4f}", flush=True
                )
            if step == num_steps:
                break
    return model


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="a folder with train/ and val/")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--size", type=int, default=None)
    parser.add_argument("--out", default="runs/article")
    arguments = parser.parse_args()

    train_data, valid_data = load_data(arguments.data, arguments.size)
    train_loader = DataLoader(train_data, batch_size=4, shuffle=True, num_workers=2)
    valid_loader = DataLoader(valid_data, batch_size=4, shuffle=False, num_workers=2)

    model = get_model(train_data)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-4)
    train_model(model, train_loader, valid_loader, optimizer, arguments.steps, arguments.out)

    model = load_model(os.path.join(arguments.out, f"checkpoint_{arguments.steps}"))
    image = sample(model, device=device)
    plt.imshow(image.numpy(), cmap="gray")
    plt.axis("off")
    plt.savefig(os.path.join(arguments.out, "sample.png"))
    plt.show()


if __name__ == "__main__":
    main()
