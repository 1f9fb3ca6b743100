//go:build linux

package storetest

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Reference applies layers one after the other to one plain directory, entry
// by entry, with paths as strings: the simplest thing that follows the image
// specification, to compare the real one with. It trusts its input.
type Reference struct{ Root string }

// reference is the state of one layer.
type reference struct {
	root     string
	unpacked map[string]bool      // paths that this layer made or merged into
	explicit map[string]time.Time // directories with an entry
	before   map[string]time.Time // times of the directories below
	fresh    map[string]bool      // directories made by this layer
}

var errReference = errors.New("the layer is invalid")

// Apply applies one tar stream.
func (ref Reference) Apply(stream []byte) error {
	r := &reference{
		root: ref.Root, unpacked: map[string]bool{"": true}, explicit: map[string]time.Time{},
		before: map[string]time.Time{}, fresh: map[string]bool{},
	}
	err := filepath.WalkDir(ref.Root, func(p string, d fs.DirEntry, err error) error {
		if err != nil || !d.IsDir() {
			return err
		}
		i, err := d.Info()
		rel, _ := filepath.Rel(ref.Root, p)
		r.before[strings.TrimPrefix(rel, ".")] = i.ModTime()
		return err
	})
	if err != nil {
		return err
	}
	for tr := tar.NewReader(bytes.NewReader(stream)); ; {
		h, err := tr.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return err
		}
		if err := r.entry(h, tr); err != nil {
			return fmt.Errorf("%s: %w", h.Name, err)
		}
	}
	return r.times()
}

// times gives directories the times that they would have in layers of their
// own: an entry's, or those of the directory below.
func (r *reference) times() error {
	for p, t := range r.before {
		if _, ok := r.explicit[p]; ok || r.fresh[p] {
			continue
		}
		if !r.isDir(p) {
			continue
		}
		if err := os.Chtimes(r.abs(p), t, t); err != nil {
			return err
		}
	}
	for p, t := range r.explicit {
		if !r.isDir(p) {
			continue
		}
		if err := os.Chtimes(r.abs(p), t, t); err != nil {
			return err
		}
	}
	return nil
}

// isDir reports whether p is a directory, and not by way of a link.
func (r *reference) isDir(p string) bool {
	for q := p; q != "" && q != "."; q = filepath.Dir(q) {
		if fi, err := os.Lstat(r.abs(q)); err != nil || !fi.IsDir() {
			return false
		}
	}
	return true
}

func (r *reference) abs(p string) string { return filepath.Join(r.root, p) }

// dir resolves a directory, through links, and makes what is missing.
func (r *reference) dir(p string, links int) (string, error) {
	if links > 40 {
		return "", errReference
	}
	cur := ""
	parts := strings.Split(p, "/")
	for i, c := range parts {
		switch c {
		case "", ".":
			continue
		case "..":
			cur = strings.TrimPrefix(filepath.Dir("/"+cur), "/")
			continue
		}
		next := strings.TrimPrefix(cur+"/"+c, "/")
		fi, err := os.Lstat(r.abs(next))
		switch {
		case err == nil && fi.IsDir():
		case err == nil && fi.Mode()&fs.ModeSymlink != 0:
			to, err := os.Readlink(r.abs(next))
			if err != nil {
				return "", err
			}
			if !strings.HasPrefix(to, "/") {
				to = cur + "/" + to
			}
			return r.dir(to+"/"+strings.Join(parts[i+1:], "/"), links+1)
		case err == nil && r.unpacked[next]:
			return "", errReference
		default:
			if err == nil {
				err = os.Remove(r.abs(next))
			} else if errors.Is(err, fs.ErrNotExist) {
				err = nil
			}
			if err == nil {
				err = os.Mkdir(r.abs(next), 0o755)
			}
			if err == nil { // whatever a set-group-ID parent gave it
				err = errors.Join(os.Chown(r.abs(next), 0, 0), os.Chmod(r.abs(next), 0o755))
			}
			if err != nil {
				return "", err
			}
			r.fresh[next] = true
		}
		r.unpacked[next] = true
		cur = next
	}
	return cur, nil
}

func (r *reference) entry(h *tar.Header, content io.Reader) error {
	p := strings.Trim(filepath.Clean("/"+h.Name), "/")
	if p == "" {
		r.explicit[""] = h.ModTime
		return setMetadata(r.root, h)
	}
	dirPath, base := filepath.Split(p)
	if strings.HasPrefix(p, ".wh..wh.") && base != ".wh..wh..opq" {
		return nil
	}
	dir, err := r.dir(dirPath, 0)
	if err != nil {
		return err
	}
	if base == ".wh..wh..opq" {
		return r.prune(dir)
	}
	if gone, ok := strings.CutPrefix(base, ".wh."); ok {
		return r.whiteout(strings.TrimPrefix(dir+"/"+gone, "/"))
	}
	full := strings.TrimPrefix(dir+"/"+base, "/")
	return r.create(full, h, content)
}

// whiteout hides what the layers below have at p.
func (r *reference) whiteout(p string) error {
	if !r.unpacked[p] {
		return os.RemoveAll(r.abs(p))
	}
	fi, err := os.Lstat(r.abs(p))
	if err != nil || !fi.IsDir() {
		return nil
	}
	if _, ok := r.explicit[p]; !ok {
		// Only implied: the directory below is gone, this is a new one.
		r.fresh[p] = true
		if err := r.renew(p); err != nil {
			return err
		}
	}
	return r.prune(p)
}

// renew makes a directory look as one that was just made.
func (r *reference) renew(p string) error {
	now := time.Now()
	return errors.Join(os.Chown(r.abs(p), 0, 0), os.Chmod(r.abs(p), 0o755), clearXattrs(r.abs(p)), os.Chtimes(r.abs(p), now, now))
}

// prune removes what the layers below have in the directory p.
func (r *reference) prune(p string) error {
	ents, err := os.ReadDir(r.abs(p))
	if err != nil {
		return err
	}
	for _, e := range ents {
		sub := strings.TrimPrefix(p+"/"+e.Name(), "/")
		switch {
		case !r.unpacked[sub]:
			err = os.RemoveAll(r.abs(sub))
		case e.IsDir():
			if _, ok := r.explicit[sub]; !ok {
				r.fresh[sub] = true
				err = r.renew(sub)
			}
			err = errors.Join(err, r.prune(sub))
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// forget takes a path, and those below it, out of what this layer made.
func (r *reference) forget(p string) {
	for q := range r.unpacked {
		if q == p || strings.HasPrefix(q, p+"/") {
			delete(r.unpacked, q)
			delete(r.explicit, q)
			delete(r.fresh, q)
		}
	}
}

func (r *reference) create(p string, h *tar.Header, content io.Reader) error {
	name := r.abs(p)
	fi, err := os.Lstat(name)
	exists := err == nil
	if h.Typeflag == tar.TypeLink {
		target := strings.Trim(filepath.Clean("/"+h.Linkname), "/")
		tdir, tbase := filepath.Split(target)
		dir, err := r.dir(tdir, 0)
		if err != nil {
			return err
		}
		from := filepath.Join(r.root, dir, tbase)
		tfi, err := os.Lstat(from)
		if err != nil || tfi.IsDir() || from == name {
			return errReference
		}
		if exists {
			r.forget(p)
			if err := os.RemoveAll(name); err != nil {
				return err
			}
		}
		r.unpacked[p] = true
		r.unpacked[strings.TrimPrefix(dir+"/"+tbase, "/")] = true // as if copied up
		return os.Link(from, name)
	}
	if exists && (!fi.IsDir() || h.Typeflag != tar.TypeDir) {
		r.forget(p)
		if err := os.RemoveAll(name); err != nil {
			return err
		}
		exists = false
	}
	r.unpacked[p] = true
	switch h.Typeflag {
	case tar.TypeDir:
		if !exists {
			r.fresh[p] = true
			err = os.Mkdir(name, 0o755)
		} else {
			err = clearXattrs(name)
		}
		if err != nil {
			return err
		}
		r.explicit[p] = h.ModTime
	case tar.TypeReg:
		raw, err := io.ReadAll(content)
		if err != nil {
			return err
		}
		if err := os.WriteFile(name, raw, 0o600); err != nil {
			return err
		}
	case tar.TypeSymlink:
		if err := os.Symlink(h.Linkname, name); err != nil {
			return err
		}
	case tar.TypeFifo:
		if err := unix.Mkfifo(name, 0o600); err != nil {
			return err
		}
	case tar.TypeChar, tar.TypeBlock:
		mode := uint32(unix.S_IFCHR)
		if h.Typeflag == tar.TypeBlock {
			mode = unix.S_IFBLK
		}
		if err := unix.Mknod(name, mode|0o600, int(unix.Mkdev(uint32(h.Devmajor), uint32(h.Devminor)))); err != nil {
			return err
		}
	}
	return setMetadata(name, h)
}

func setMetadata(name string, h *tar.Header) error {
	if err := os.Lchown(name, h.Uid, h.Gid); err != nil {
		return err
	}
	for k, v := range h.PAXRecords {
		if x, ok := strings.CutPrefix(k, "SCHILY.xattr."); ok {
			if err := unix.Lsetxattr(name, x, []byte(v), 0); err != nil && err != unix.EPERM {
				return err
			}
		}
	}
	if h.Typeflag != tar.TypeSymlink {
		if err := unix.Chmod(name, uint32(h.Mode)&0o7777); err != nil {
			return err
		}
	}
	ts := unix.NsecToTimespec(h.ModTime.UnixNano())
	return unix.UtimesNanoAt(unix.AT_FDCWD, name, []unix.Timespec{ts, ts}, unix.AT_SYMLINK_NOFOLLOW)
}

func clearXattrs(name string) error {
	buf := make([]byte, 4096)
	n, err := unix.Llistxattr(name, buf)
	if err != nil {
		return err
	}
	for x := range strings.SplitSeq(string(buf[:n]), "\x00") {
		if x != "" {
			if err := unix.Lremovexattr(name, x); err != nil {
				return err
			}
		}
	}
	return nil
}
