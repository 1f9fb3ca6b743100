package vmimage

import (
	"bytes"
	"context"
	"crypto/x509"
	"debug/elf"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"sort"
	"strings"
)

// rootPackages are the Debian packages whose files go into the root, beside
// the kernel.
var rootPackages = []string{
	"e2fsprogs", "libext2fs2", "libcom-err2", "libblkid1", "libuuid1", "libc6", "ca-certificates", "busybox-static",
}

const (
	fsUUID    = "6468f077-0000-4000-8000-000000000001" // fixed: the same inputs give the same bytes
	caBundle  = "etc/ssl/certs/ca-certificates.crt"
	helloFile = "usr/share/dhow/images/busybox.tar"
)

// rootPrograms are the Debian programs in the root, with the libraries that
// they need.
var rootPrograms = []string{"sbin/mke2fs", "sbin/e2fsck"}

// skeleton is what every root has: mount points and small files.
func skeleton() tree {
	t := tree{}
	t.dir(0o755, "dev", "proc", "sys", "run", "etc", "sbin", "bin", "lib", "usr/share/dhow/images", "var/lib/dhow", "mnt", "root")
	t.dir(fs.ModeSticky|0o777, "tmp")
	t.symlink("var/run", "/run")
	t.symlink("var/tmp", "/tmp")
	t.symlink("etc/resolv.conf", "/run/resolv.conf")
	t.symlink("etc/mtab", "/proc/self/mounts")
	t.symlink("sbin/modprobe", "dhow-init")
	t.file("etc/passwd", 0o644, []byte("root:x:0:0:root:/root:/bin/false\nnobody:x:65534:65534:nobody:/:/bin/false\n"))
	t.file("etc/group", 0o644, []byte("root:x:0:\ntty:x:5:\nnogroup:x:65534:\n"))
	t.file("etc/hosts", 0o644, []byte("127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n"))
	t.file("etc/nsswitch.conf", 0o644, []byte("passwd: files\ngroup: files\nhosts: files dns\n"))
	t.file("etc/os-release", 0o644, []byte("ID=dhow\nNAME=dhow\nPRETTY_NAME=\"dhow\"\n"))
	return t
}

// certificates makes the bundle that update-ca-certificates would make: every
// certificate of the package, sorted by file name.
func certificates(pkg tree) ([]byte, error) {
	var names []string
	for n := range pkg {
		if strings.HasPrefix(n, "usr/share/ca-certificates/") && strings.HasSuffix(n, ".crt") {
			names = append(names, n)
		}
	}
	sort.Strings(names)
	var out bytes.Buffer
	for _, n := range names {
		b, _ := pem.Decode(pkg[n].data)
		if b == nil {
			return nil, fmt.Errorf("%s holds no PEM", n)
		}
		if _, err := x509.ParseCertificate(b.Bytes); err != nil {
			return nil, fmt.Errorf("%s: %w", n, err)
		}
		out.Write(bytes.TrimSpace(pkg[n].data))
		out.WriteByte('\n')
	}
	if len(names) == 0 {
		return nil, errors.New("the package ca-certificates holds no certificates")
	}
	return out.Bytes(), nil
}

// addProgram copies a program and the libraries it needs (DT_NEEDED, and its
// interpreter) from the packages' files into t. A symbolic link is copied with
// what it points to.
func addProgram(t, pkgs tree, name string) error {
	real, err := addFile(t, pkgs, name)
	if err != nil {
		return err
	}
	f, err := elf.NewFile(bytes.NewReader(pkgs[real].data))
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP {
			b := make([]byte, p.Filesz)
			if _, err := p.ReadAt(b, 0); err != nil {
				return fmt.Errorf("%s: interpreter: %w", name, err)
			}
			interp := strings.TrimPrefix(strings.TrimRight(string(b), "\x00"), "/")
			if _, err := addFile(t, pkgs, interp); err != nil {
				return fmt.Errorf("%s: interpreter: %w", name, err)
			}
		}
	}
	libs, err := f.ImportedLibraries()
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	for _, l := range libs {
		found := findLibrary(pkgs, l)
		if found == "" {
			return fmt.Errorf("%s needs %s, which is in none of the image's packages", name, l)
		}
		if _, ok := t[found]; ok {
			continue
		}
		if err := addProgram(t, pkgs, found); err != nil {
			return err
		}
	}
	return nil
}

// findLibrary looks in the loader's default directories.
func findLibrary(pkgs tree, name string) string {
	for n := range pkgs {
		d := path.Dir(n)
		if path.Base(n) == name && (d == "lib" || d == "usr/lib" || strings.HasPrefix(d, "lib/") && strings.HasSuffix(d, "-linux-gnu") ||
			strings.HasPrefix(d, "usr/lib/") && strings.HasSuffix(d, "-linux-gnu") && strings.Count(d, "/") == 2) {
			return n
		}
	}
	return ""
}

// addFile copies name, following symbolic links, and returns the name of the
// regular file.
func addFile(t, pkgs tree, name string) (string, error) {
	for range 8 {
		n, ok := pkgs[name]
		if !ok {
			return "", fmt.Errorf("%s is in none of the image's packages", name)
		}
		t.add(name, n)
		if n.mode.Type() != fs.ModeSymlink {
			return name, nil
		}
		if path.IsAbs(n.link) {
			name = strings.TrimPrefix(path.Clean(n.link), "/")
		} else {
			name = path.Join(path.Dir(name), n.link)
		}
	}
	return "", fmt.Errorf("%s: too many symbolic links", name)
}

// makeErofs writes the tree as an erofs image. Not compressed: the machine
// reads it from the host's page cache, and unpacking costs an emulated machine
// more than the bytes.
func makeErofs(ctx context.Context, t tree, scratch, out string) error {
	dir, err := os.MkdirTemp(scratch, "root-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	if err := os.Chmod(dir, 0o755); err != nil {
		return err
	}
	if err := t.writeDir(dir); err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, "mkfs.erofs", "--quiet", "-x-1", "--all-root", fmt.Sprintf("-T%d", epoch.Unix()), "-U"+fsUUID, out, dir)
	var msg bytes.Buffer
	cmd.Stdout, cmd.Stderr = &msg, &msg
	if err := cmd.Run(); err != nil {
		if errors.Is(err, exec.ErrNotFound) {
			return missingTool(err, "mkfs.erofs", "erofs-utils")
		}
		return fmt.Errorf("mkfs.erofs: %w: %s", err, bytes.TrimSpace(msg.Bytes()))
	}
	return nil
}
