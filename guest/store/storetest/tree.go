//go:build linux

package storetest

import (
	"crypto/sha256"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// Entry describes one file of a tree, for comparison.
type Entry struct {
	Mode  uint32 // type and permissions
	UID   uint32
	GID   uint32
	Size  int64 // of files and links
	Rdev  uint64
	Mtime int64  // ns; 0 if it is not compared
	Data  string // digest of a file, target of a link
	Xattr string // sorted
	Link  string // first path of the inode, if it has several names
}

// ReadTree describes all that is below root, by path; "." is root itself. A
// whiteout is described as what it is.
func ReadTree(root string) (map[string]Entry, error) {
	out := make(map[string]Entry)
	links := make(map[uint64][]string)
	err := filepath.WalkDir(root, func(p string, _ os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, p)
		if err != nil {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(p, &st); err != nil {
			return fmt.Errorf("stat %s: %w", p, err)
		}
		e := Entry{Mode: st.Mode, UID: st.Uid, GID: st.Gid, Mtime: st.Mtim.Nano()}
		switch st.Mode & unix.S_IFMT {
		case unix.S_IFREG:
			e.Size = st.Size
			raw, err := os.ReadFile(p)
			if err != nil {
				return err
			}
			e.Data = fmt.Sprintf("%x", sha256.Sum256(raw))
		case unix.S_IFLNK:
			e.Size = st.Size
			if e.Data, err = os.Readlink(p); err != nil {
				return err
			}
		case unix.S_IFCHR, unix.S_IFBLK:
			e.Rdev = st.Rdev
		}
		if st.Mode&unix.S_IFMT != unix.S_IFDIR && st.Nlink > 1 {
			links[st.Ino] = append(links[st.Ino], rel)
		}
		e.Xattr, err = xattrs(p)
		out[rel] = e
		return err
	})
	for _, names := range links {
		// An inode may have names in layers that do not show.
		for _, rel := range names[:len(names)*min(1, len(names)-1)] {
			e := out[rel]
			e.Link = names[0]
			out[rel] = e
		}
	}
	return out, err
}

func xattrs(p string) (string, error) {
	buf := make([]byte, 64<<10)
	n, err := unix.Llistxattr(p, buf)
	if err == unix.ENOTSUP {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("list attributes of %s: %w", p, err)
	}
	var all []string
	for name := range strings.SplitSeq(string(buf[:n]), "\x00") {
		if name == "" || strings.HasPrefix(name, "trusted.overlay.") {
			continue
		}
		v := make([]byte, 64<<10)
		n, err := unix.Lgetxattr(p, name, v)
		if err != nil {
			return "", fmt.Errorf("attribute %s of %s: %w", name, p, err)
		}
		all = append(all, fmt.Sprintf("%s=%q", name, v[:n]))
	}
	slices.Sort(all)
	return strings.Join(all, " "), nil
}

// DiffTrees returns what differs between two trees, a line each, sorted.
func DiffTrees(got, want map[string]Entry) []string {
	var out []string
	for _, p := range slices.Sorted(maps.Keys(want)) {
		g, ok := got[p]
		switch {
		case !ok:
			out = append(out, p+": missing")
		case g != want[p]:
			out = append(out, fmt.Sprintf("%s: got %+v, want %+v", p, g, want[p]))
		}
	}
	for _, p := range slices.Sorted(maps.Keys(got)) {
		if _, ok := want[p]; !ok {
			out = append(out, fmt.Sprintf("%s: should not be there: %+v", p, got[p]))
		}
	}
	return out
}
