"""Users of a cloud that may do what one of our policies says; see tests/s3.py for the server.

moto checks actions, and the resources of S3 alone; it cannot check conditions. What it cannot is left out.
"""

import json
import urllib.request
from pathlib import Path
from typing import Any

POLICIES = Path(__file__).parents[2] / "cluster" / "policies"
ANYTHING = {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "*", "Resource": "*"}]}


def policy(name: str, bucket: str = "BUCKET") -> dict[str, Any]:
    """Return the policy of that name for a bucket, as far as it can be checked."""
    document: dict[str, Any] = json.loads((POLICIES / f"{name}.json").read_text().replace("BUCKET", bucket))
    for statement in document["Statement"]:
        statement.pop("Condition", None)
        if not all(action.startswith("s3:") for action in statement["Action"]):
            statement["Resource"] = "*"
    return document


def add_user(name: str, document: dict[str, Any]) -> dict[str, str]:
    """Make a user with a policy of its own and return the environment that speaks for it."""
    import boto3

    iam = boto3.Session().client("iam")  # the keys that are in the environment now
    iam.create_user(UserName=name)
    iam.put_user_policy(UserName=name, PolicyName="own", PolicyDocument=json.dumps(document))
    key = iam.create_access_key(UserName=name)["AccessKey"]
    return {"AWS_ACCESS_KEY_ID": key["AccessKeyId"], "AWS_SECRET_ACCESS_KEY": key["SecretAccessKey"]}


def demand_permissions(endpoint: str) -> None:
    """From here on every request to the server needs a permission."""
    plain = {"Content-Type": "text/plain"}
    switch = urllib.request.Request(f"{endpoint}/moto-api/reset-auth", b"0", plain, method="POST")
    urllib.request.urlopen(switch).read()
