"""What a policy asks of one base model, resolved and checked before anything is written. No torch."""
