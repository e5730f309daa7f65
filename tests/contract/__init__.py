"""What the protos promise, tried through a real channel; generated from the descriptors."""
