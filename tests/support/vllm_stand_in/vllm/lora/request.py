class LoRARequest:
    def __init__(self, name, number, path):
        self.path = path
