"""What the original application did with Redis, as a program: what dyndata must get along with.

The two functions are the original's, line for line in what they send to Redis: the key is made
with `str(id).encode()`, which on Python 3 puts `b'42'` into the key, and the value is written by
SET and EXPIREAT in one pipeline. `--plain-keys` is the same application as on Python 2, or with the
oversight mended. Nothing here knows of dyndata.
"""

import argparse
import time

import redis

ONLINE_LAST_SECONDS = 60


def mark_dyn_data(client, key_of, id, data):
    """Keeps an id's number for the next minute."""
    key = key_of(id)
    expires = int(time.time()) + ONLINE_LAST_SECONDS
    pipeline = client.pipeline()
    pipeline.set(key, data)
    pipeline.expireat(key, expires)
    pipeline.execute()


def get_dyn_data(client, key_of, id):
    """The id's number, or 0 if there is none."""
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
