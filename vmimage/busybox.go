package vmimage

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// HelloImage is the name of the image that the root carries, so that a new
// machine can run a container before it has pulled one.
const HelloImage = "dhow/hello:latest"

// applets finds the names of busybox's programs in its binary: a sorted list of
// strings, each ended by a zero byte, that starts with "[" and "[[".
func applets(bin []byte) ([]string, error) {
	start := bytes.Index(bin, []byte("\x00[\x00[[\x00"))
	if start < 0 {
		return nil, errors.New("busybox: no list of applets")
	}
	var out []string
	for s := range strings.SplitSeq(string(bin[start+1:min(len(bin), start+16<<10)]), "\x00") {
		if s == "" || len(out) > 0 && s <= out[len(out)-1] {
			break
		}
		out = append(out, s)
	}
	if len(out) < 100 {
		return nil, fmt.Errorf("busybox: only %d applets found", len(out))
	}
	return out, nil
}

// helloRoot is the content of the image's only layer.
func helloRoot(busybox []byte) (tree, error) {
	names, err := applets(busybox)
	if err != nil {
		return nil, err
	}
	t := tree{}
	t.file("bin/busybox", 0o755, busybox)
	for _, n := range names {
		if n != "busybox" && !strings.Contains(n, "/") {
			t.symlink("bin/"+n, "busybox")
		}
	}
	t.dir(fs.ModeSticky|0o777, "tmp")
	t.dir(0o700, "root")
	t.dir(0o755, "home", "dev", "proc", "sys", "usr/bin", "usr/sbin", "sbin", "var", "etc")
	t.file("etc/passwd", 0o644, []byte("root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/home:/bin/false\n"))
	t.file("etc/group", 0o644, []byte("root:x:0:\nnobody:x:65534:\n"))
	return t, nil
}

// writeTar writes the tree as a tar archive.
func (t tree) writeTar(w io.Writer) error {
	tw := tar.NewWriter(w)
	for _, name := range t.names() {
		n := t[name]
		h := &tar.Header{Name: name, Mode: int64(n.mode.Perm()), ModTime: epoch, Format: tar.FormatPAX}
		if n.mode&fs.ModeSticky != 0 {
			h.Mode |= 0o1000
		}
		switch n.mode.Type() {
		case fs.ModeDir:
			h.Typeflag, h.Name = tar.TypeDir, name+"/"
		case fs.ModeSymlink:
			h.Typeflag, h.Linkname = tar.TypeSymlink, n.link
		default:
			h.Typeflag, h.Size = tar.TypeReg, int64(len(n.data))
		}
		if err := tw.WriteHeader(h); err != nil {
			return err
		}
		if _, err := tw.Write(n.data); err != nil {
			return err
		}
	}
	return tw.Close()
}

// helloImage packs the busybox binary as an OCI image layout in a tar archive.
func helloImage(arch string, busybox []byte, version, scratch string) ([]byte, error) {
	root, err := helloRoot(busybox)
	if err != nil {
		return nil, err
	}
	var layerTar bytes.Buffer
	if err := root.writeTar(&layerTar); err != nil {
		return nil, err
	}
	layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) {
		return io.NopCloser(bytes.NewReader(layerTar.Bytes())), nil
	}, tarball.WithMediaType(types.OCILayer))
	if err != nil {
		return nil, err
	}
	img := mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.OCIConfigJSON)
	created := v1.Time{Time: epoch}
	if img, err = mutate.Append(img, mutate.Addendum{Layer: layer, History: v1.History{
		Created: created, CreatedBy: "busybox-static " + version + " (Debian)",
	}}); err != nil {
		return nil, err
	}
	cf, err := img.ConfigFile()
	if err != nil {
		return nil, err
	}
	cf = cf.DeepCopy()
	cf.Architecture, cf.OS, cf.Created = arch, "linux", created
	cf.Config = v1.Config{
		Env: []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}, Cmd: []string{"/bin/sh"}, WorkingDir: "/",
		Labels: map[string]string{"org.opencontainers.image.title": "dhow/hello", "org.opencontainers.image.licenses": "GPL-2.0-only"},
	}
	if img, err = mutate.ConfigFile(img, cf); err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp(scratch, "hello-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	p, err := layout.Write(dir, empty.Index)
	if err != nil {
		return nil, err
	}
	repo, tag, _ := strings.Cut(HelloImage, ":")
	if err := p.AppendImage(img, layout.WithPlatform(v1.Platform{OS: "linux", Architecture: arch}), layout.WithAnnotations(map[string]string{
		"org.opencontainers.image.ref.name": tag,
		"io.containerd.image.name":          "docker.io/" + repo + ":" + tag,
	})); err != nil {
		return nil, err
	}
	return tarLayout(dir)
}

// tarLayout packs an OCI layout directory, with its JSON made compact.
func tarLayout(dir string) ([]byte, error) {
	t := tree{}
	err := filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		data, err := os.ReadFile(p)
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(dir, p)
		if err != nil {
			return err
		}
		if strings.HasSuffix(rel, ".json") || rel == "oci-layout" {
			var b bytes.Buffer
			if err := json.Compact(&b, data); err != nil {
				return fmt.Errorf("%s: %w", rel, err)
			}
			data = b.Bytes()
		}
		t.file(filepath.ToSlash(rel), 0o644, data)
		return nil
	})
	if err != nil {
		return nil, err
	}
	var out bytes.Buffer
	err = t.writeTar(&out)
	return out.Bytes(), err
}
