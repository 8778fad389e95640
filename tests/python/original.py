"""The original application's use of Redis, as a program. dyndata must work beside it.

The two functions send to Redis exactly what the original functions sent. They make the key with
`str(id).encode()`, which on Python 3 puts `b'42'` into the key, and write the value with SET and
EXPIREAT in one pipeline. With `--plain-keys`, the keys are those of Python 2, or of an application
that has corrected this mistake. Nothing here uses dyndata.
"""

import argparse
import time

import redis

ONLINE_LAST_SECONDS = 60


def mark_dyn_data(client, key_of, id, data):
    """Stores the number of an id for the next minute."""
    key = key_of(id)
    expires = int(time.time()) + ONLINE_LAST_SECONDS
    pipeline = client.pipeline()
    pipeline.set(key, data)
    pipeline.expireat(key, expires)
    pipeline.execute()


def get_dyn_data(client, key_of, id):
    """The number of an id, or 0 if there is none."""
    data = client.get(key_of(id))
    return int(data) if data else 0


def python_bytes_key(id):
    return "dyn_data/%s" % str(id).encode()


def plain_key(id):
    return "dyn_data/%s" % id


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--redis-url", required=True)
    parser.add_argument("--plain-keys", action="store_true")
    commands = parser.add_subparsers(dest="command", required=True)
    mark = commands.add_parser("mark")
    mark.add_argument("id")
    mark.add_argument("data", type=int)
    get = commands.add_parser("get")
    get.add_argument("id")
    options = parser.parse_args()

    client = redis.Redis.from_url(options.redis_url)
    key_of = plain_key if options.plain_keys else python_bytes_key
    if options.command == "mark":
        mark_dyn_data(client, key_of, options.id, options.data)
    else:
        print(get_dyn_data(client, key_of, options.id))


if __name__ == "__main__":
    main()
