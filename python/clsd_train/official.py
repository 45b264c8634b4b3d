"""Files of weights that are known by their content."""

import hashlib

# SHA-256 of EDSR-PyTorch's EDSR-baseline; the names that it publishes them by end in the first 8
# digits.
EDSR_BASELINE = {
    2: "1bc9523228fdc3b0a5ddb0d7062001e22b31bbb398ae09cfdefb97e8ee06e171",
    3: "abf2a44e7a137228efa42a4264a23e12603168d43ac7596b1adef40c649b9240",
    4: "6b446fab734f4de74448d2fd1f3f990f5bae726e49dc7eff2ae9cefe444a1723",
}


def is_official(content: bytes) -> bool:
    """Whether that is what an official file holds: EDSR-baseline's weights."""
    return hashlib.sha256(content).hexdigest() in EDSR_BASELINE.values()
