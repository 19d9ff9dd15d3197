"""From files to device-ready rows: pictures, chat layout, boxes, records, scenes, packing and the pipeline."""
