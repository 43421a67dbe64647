"""GPUs of the machine, from one provider per family of drivers."""
