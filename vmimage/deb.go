package vmimage

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os/exec"
	"path"
	"strings"
)

// readDeb returns the files of a Debian package whose paths keep accepts, by
// path without "./". dpkg-deb undoes whatever compression the package has.
func readDeb(ctx context.Context, file string, keep func(name string) bool) (tree, error) {
	cmd := exec.CommandContext(ctx, "dpkg-deb", "--fsys-tarfile", file)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, missingTool(err, "dpkg-deb", "dpkg")
	}
	t, err := readTar(out, keep)
	_, _ = io.Copy(io.Discard, out) // so that dpkg-deb ends
	if werr := cmd.Wait(); werr != nil {
		err = errors.Join(err, fmt.Errorf("dpkg-deb %s: %w: %s", file, werr, bytes.TrimSpace(stderr.Bytes())))
	}
	if err != nil {
		return nil, err
	}
	return t, nil
}

func readTar(r io.Reader, keep func(string) bool) (tree, error) {
	t := tree{}
	tr := tar.NewReader(r)
	for {
		h, err := tr.Next()
		if err == io.EOF {
			return t, nil
		}
		if err != nil {
			return nil, err
		}
		name := strings.TrimPrefix(path.Clean("/"+h.Name), "/")
		if !keep(name) {
			continue
		}
		switch h.Typeflag {
		case tar.TypeReg:
			data, err := io.ReadAll(tr)
			if err != nil {
				return nil, err
			}
			t.file(name, fs.FileMode(h.Mode).Perm(), data)
		case tar.TypeSymlink:
			t.symlink(name, h.Linkname)
		case tar.TypeLink:
			t[name] = t[strings.TrimPrefix(path.Clean("/"+h.Linkname), "/")]
		}
	}
}
