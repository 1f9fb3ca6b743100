// Package version holds dhow's own version, which host and guest are built
// with. The Makefile sets both variables with -ldflags -X.
package version

// Version is the release, such as "0.1.0"; Commit the source revision.
var (
	Version = "0.1.0-dev"
	Commit  = "unknown"
)
