#!/usr/bin/env bash
# Writes the API reference, api.md, into a directory: what the descriptor set of proto/ says, as
# docs/api/template.md.tmpl arranges it. Installs buf and protoc-gen-doc into .tools if they are
# not there.
#
#     docs/api/generate.sh DIRECTORY
set -euo pipefail
directory=$(realpath "$1")
cd "$(dirname "$0")/../.."

package=github.com/pseudomuto/protoc-gen-doc/cmd/protoc-gen-doc
release=v1.5.1
plugin=.tools/protoc-gen-doc/$release/protoc-gen-doc

tests/clients/setup-buf.sh
if [ ! -x "$plugin" ]; then
    if ! command -v go >/dev/null; then
        . tests/clients/apt.sh
        apt_install golang-go
    fi
    GOBIN="$PWD/$(dirname "$plugin")" go install "$package@$release"
fi

.tools/npm/node_modules/.bin/buf generate proto --path proto/dyndata --template "{\"version\": \"v2\", \"plugins\": [{
    \"local\": \"$plugin\",
    \"opt\": \"docs/api/template.md.tmpl,api.md\",
    \"out\": \"$directory\"
}]}"
