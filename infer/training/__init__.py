"""What a training takes from sampling: checks and a plan before it, its clips encoded and inverted, its previews."""
