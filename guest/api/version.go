//go:build linux

package api

import (
	"strconv"
	"strings"

	"dhow/internal/errdefs"
)

// Version is the highest API version served, MinVersion the lowest. 1.52 is
// that of moby 29.0: what later ones add (image attestations, annotation
// filters, umask) is not here yet, so it is not claimed. Clients negotiate
// down to it; older ones, such as docker-py's, ask for theirs and get answers
// of that shape.
const (
	Version    = "1.52"
	MinVersion = "1.24"
)

// version is an API version: major<<16 | minor. Versions compare as numbers.
type version uint32

// v1 is version 1.minor.
func v1(minor int) version { return 1<<16 | version(minor) }

var (
	maxVersion = mustVersion(Version)
	minVersion = mustVersion(MinVersion)
)

func mustVersion(s string) version {
	v, ok := parseVersion(s)
	if !ok {
		panic("api: malformed version " + s)
	}
	return v
}

// String returns v as it is written in a path, e.g. "1.44".
func (v version) String() string {
	return strconv.Itoa(int(v>>16)) + "." + strconv.Itoa(int(v&0xffff))
}

// parseVersion reads "major", "major.minor" or, as dockerd does, more parts,
// which do not count. ok is false if a part is missing or is not a number below 2¹⁶.
func parseVersion(s string) (v version, ok bool) {
	for i, part := range strings.Split(s, ".") {
		n, err := strconv.ParseUint(part, 10, 16)
		if err != nil || part[0] == '+' {
			return 0, false
		}
		switch i {
		case 0:
			v = version(n) << 16
		case 1:
			v |= version(n)
		}
	}
	return v, true
}

// splitVersion takes a leading /v{digits and dots} off path. v is "" where
// there is none.
func splitVersion(path string) (v, rest string) {
	s, ok := strings.CutPrefix(path, "/v")
	if !ok {
		return "", path
	}
	v, rest, ok = strings.Cut(s, "/")
	if !ok || v == "" || strings.Trim(v, "0123456789.") != "" {
		return "", path
	}
	return v, "/" + rest
}

// takeVersion takes the version off path and sets the call's: the highest
// where the path names none.
func (c *call) takeVersion(path string) (rest string, err error) {
	s, rest := splitVersion(path)
	if s == "" {
		c.version = maxVersion
		return rest, nil
	}
	v, ok := parseVersion(s)
	switch {
	case !ok:
		return "", errdefs.New(errdefs.Invalid, "invalid API version: %s", s)
	case v < minVersion:
		return "", errdefs.New(errdefs.Invalid, "client version %s is too old. Minimum supported API version is %s, please upgrade your client to a newer version", s, MinVersion)
	case v > maxVersion:
		return "", errdefs.New(errdefs.Invalid, "client version %s is too new. Maximum supported API version is %s", s, Version)
	}
	c.version = v
	return rest, nil
}
