"""What has happened and been learned, read and explained; nothing here takes part in a step."""
