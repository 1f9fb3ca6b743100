//go:build linux

package layer

import (
	"strings"

	"dhow/internal/errdefs"
)

// What Apply keeps until Finish, in bytes of memory beside the names. They are
// a little more than Go takes, maps and their growth included; TestMemory
// compares.
const (
	dirCost      = 400 // a node, its place in its parent and among all directories
	nameCost     = 64  // a name in a set
	whiteoutCost = 256 // a directory's first whiteout: the set itself
	xattrCost    = 64  // an attribute of a directory
)

// The kernel's own limits for extended attributes (XATTR_NAME_MAX and
// XATTR_SIZE_MAX in linux/limits.h), and one for all attributes of a file that
// is far above what ext4 can store.
const (
	maxXattrName  = 255
	maxXattrValue = 64 << 10
	maxXattrs     = 64 << 10
)

// charge counts n bytes of memory that the layer takes from now on, or, if n
// is negative, no longer.
func (a *applier) charge(n int64) error {
	if n == 0 {
		return nil
	}
	a.memory += n
	if a.memory > a.limits.Memory {
		return errdefs.New(errdefs.Invalid,
			"the names and attributes of the layer's directories take more than %d bytes of memory", a.limits.Memory)
	}
	if a.reserve != nil {
		return a.reserve(n)
	}
	return nil
}

func checkXattr(name, value string, total int) error {
	switch {
	case len(name) > maxXattrName:
		return errdefs.New(errdefs.Invalid, "an extended attribute's name has %d bytes: at most %d are allowed", len(name), maxXattrName)
	case len(value) > maxXattrValue:
		return errdefs.New(errdefs.Invalid, "extended attribute %s has %d bytes: at most %d are allowed", printable(name), len(value), maxXattrValue)
	case total > maxXattrs:
		return errdefs.New(errdefs.Invalid, "extended attributes take %d bytes: at most %d are allowed", total, maxXattrs)
	}
	return nil
}

// cost returns the memory that the attributes take.
func (m *metadata) cost() (n int64) {
	for _, x := range m.xattrs {
		n += xattrCost + int64(len(x.name)+len(x.value))
	}
	return n
}

// own makes the attributes independent of the tar header that they were cut
// from, which is up to 1 MiB large and would be kept by any of them.
func (m *metadata) own() {
	for i, x := range m.xattrs {
		m.xattrs[i] = xattr{strings.Clone(x.name), strings.Clone(x.value)}
	}
}
