"""Fine-tuning of CLIP models on image-caption pairs with DHN-NCE and its alternatives."""
