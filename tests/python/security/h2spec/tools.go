//go:build tools

// Package tools names what tests/setup.sh installs, so that go.mod pins it with its dependencies: h2spec
// 2 has no go.mod of its own. 2.2.1 is the newest release that the Go module proxy knows.
package tools

import _ "github.com/summerwind/h2spec/cmd/h2spec"
