"""From one representation to another: ONNX export, compacted models, masks from score lists."""
