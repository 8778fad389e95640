#!/usr/bin/env bash
# Writes the API reference, api.md, into a directory: what the descriptor set of proto/ says, as
# docs/api/template.md.tmpl arranges it. Installs buf and protoc-gen-doc into .tools if they are
# not there.
#
#     docs/api/generate.sh DIRECTORY
set -euo pipefail
directory=$(realpath "$1")
cd "$(dirname "$0")/../.."

tests/setup.sh api-docs
.tools/npm/node_modules/.bin/buf generate proto --path proto/dyndata --template "{\"version\": \"v2\", \"plugins\": [{
    \"local\": \"$PWD/.tools/bin/protoc-gen-doc\",
    \"opt\": \"docs/api/template.md.tmpl,api.md\",
    \"out\": \"$directory\"
}]}"
