//go:build linux

// Command walk prints every file below a directory, one per line, in order:
// path, mode, uid, gid, size, device, link target, extended attributes and the
// sha256 of the content. The VM tests run it in a container and compare with
// what they pushed.
package main

import (
	"bufio"
	"crypto/sha256"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"syscall"
)

func main() {
	skip := map[string]bool{}
	for _, s := range os.Args[2:] {
		skip[s] = true
	}
	out := bufio.NewWriter(os.Stdout)
	err := filepath.WalkDir(os.Args[1], func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if skip[path] {
			if d.IsDir() {
				return fs.SkipDir
			}
			return nil
		}
		var st syscall.Stat_t
		if err := syscall.Lstat(path, &st); err != nil {
			return err
		}
		size, target, sum, dev := int64(0), "", "-", uint64(0)
		switch st.Mode & syscall.S_IFMT {
		case syscall.S_IFREG:
			data, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			size, sum = int64(len(data)), fmt.Sprintf("%x", sha256.Sum256(data))
		case syscall.S_IFLNK:
			if target, err = os.Readlink(path); err != nil {
				return err
			}
		case syscall.S_IFBLK, syscall.S_IFCHR:
			dev = st.Rdev
		}
		attrs := []string{}
		if st.Mode&syscall.S_IFMT != syscall.S_IFLNK {
			if attrs, err = xattrs(path); err != nil {
				return err
			}
		}
		fmt.Fprintf(out, "%q %o %d %d %d %d %q %q %s\n", path, st.Mode, st.Uid, st.Gid, size, dev, target, attrs, sum)
		return nil
	})
	if err == nil {
		err = out.Flush()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func xattrs(path string) ([]string, error) {
	buf := make([]byte, 64<<10)
	n, err := syscall.Listxattr(path, buf)
	if err != nil {
		return nil, fmt.Errorf("listxattr %s: %w", path, err)
	}
	list := []string{}
	for _, name := range strings.Split(strings.TrimRight(string(buf[:n]), "\x00"), "\x00") {
		if name == "" {
			continue
		}
		val := make([]byte, 64<<10)
		m, err := syscall.Getxattr(path, name, val)
		if err != nil {
			return nil, fmt.Errorf("getxattr %s %s: %w", path, name, err)
		}
		list = append(list, fmt.Sprintf("%s=%x", name, val[:m]))
	}
	sort.Strings(list)
	return list, nil
}
