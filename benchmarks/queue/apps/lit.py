"""LitServe: a synchronous batching server without a queue, for scale."""

import sys

import litserve


class Api(litserve.LitAPI):
    def setup(self, device: str) -> None:
        pass

    def decode_request(self, request: dict) -> str:
        return request["text"]

    def batch(self, inputs: list[str]) -> list[str]:
        return list(inputs)

    def predict(self, inputs: list[str]) -> list[str]:
        return [text.upper() for text in inputs]

    def unbatch(self, outputs: list[str]) -> list[str]:
        return outputs

    def encode_response(self, output: str) -> dict:
        return {"result": output}


if __name__ == "__main__":
    api = Api(max_batch_size=64, batch_timeout=0.01)
    litserve.LitServer(api, accelerator="cpu").run(
        host="127.0.0.1", port=int(sys.argv[1]), log_level="warning", generate_client_file=False
    )
