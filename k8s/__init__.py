"""What Kubernetes is told of shieldx, and the program that writes a part of it."""
