package image

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"dhow/internal/errdefs"
)

// Names of the files that an image must have.
const (
	Kernel = "kernel"
	Initrd = "initrd"
	Root   = "root.erofs"

	manifestName = "manifest.json"
)

// booted are the files that a machine boots from, and the only ones that are
// looked at: an image's directory may hold more (an SBOM, licences).
var booted = []string{Kernel, Initrd, Root}

// Manifest describes an image; it is the content of its manifest.json.
type Manifest struct {
	Version       string          `json:"version"` // of dhow
	Arch          string          `json:"arch"`    // as GOARCH
	KernelVersion string          `json:"kernel_version"`
	Cmdline       string          `json:"cmdline"` // kernel parameters that every driver needs
	Files         map[string]File `json:"files"`   // by name
}

// File is what a manifest says of one file.
type File struct {
	SHA256 string `json:"sha256"` // hex
	Size   int64  `json:"size"`   // bytes
}

// Image is an image in a directory. Its manifest is read and the files
// that a machine boots from are there with the right sizes; Verify checks their content.
type Image struct {
	Dir string
	Manifest
}

// Kernel, Initrd and Root return the paths of the image's files.
func (i *Image) Kernel() string { return filepath.Join(i.Dir, Kernel) }

// Initrd is described at Kernel.
func (i *Image) Initrd() string { return filepath.Join(i.Dir, Initrd) }

// Root is described at Kernel.
func (i *Image) Root() string { return filepath.Join(i.Dir, Root) }

// Search says where to look for an image.
type Search struct {
	Override   string // a directory that the user named ($DHOW_IMAGE or a setting); "" = none
	Executable string // path of the running program, links resolved
	Arch       string // as GOARCH
}

// Places returns the directories to look in, best first. An override is the
// only place: what the user named must not silently be something else.
func (s Search) Places() []string {
	if s.Override != "" {
		return []string{s.Override}
	}
	prefix := filepath.Dir(filepath.Dir(s.Executable)) // of <prefix>/bin/dhowd
	return []string{
		filepath.Join(prefix, "share", "dhow", "image", s.Arch),
		filepath.Join(prefix, "build", "out", "image", s.Arch), // bin/ of a checkout
	}
}

// Find opens the first image of the search. The error is NotFound and names
// the places where there is none.
func Find(s Search) (*Image, error) {
	for _, dir := range s.Places() {
		i, err := Open(dir, s.Arch)
		if errors.Is(err, os.ErrNotExist) && s.Override == "" {
			continue
		}
		return i, err
	}
	return nil, errdefs.New(errdefs.NotFound,
		"no VM image for %s: looked in %s; make one with `make vmimage`, or set DHOW_IMAGE to its directory", s.Arch, strings.Join(s.Places(), " and "))
}

// Open reads the manifest of the image in dir and checks the files' sizes. The
// error is NotFound (and wraps os.ErrNotExist) where there is no manifest, and
// Invalid where the image is not whole or of another architecture.
func Open(dir, arch string) (*Image, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, err
	}
	b, err := os.ReadFile(filepath.Join(dir, manifestName))
	if err != nil {
		if errors.Is(err, os.ErrNotExist) {
			return nil, errdefs.Wrap(errdefs.NotFound, err, "there is no VM image in %s (no %s); make one with `make vmimage`", dir, manifestName)
		}
		return nil, errdefs.Wrap(errdefs.Denied, err, "cannot read the VM image in %s", dir)
	}
	i := &Image{Dir: dir}
	if err := json.Unmarshal(b, &i.Manifest); err != nil {
		return nil, i.broken(err, "its manifest is malformed")
	}
	if i.Arch != arch {
		return nil, errdefs.New(errdefs.Invalid, "the VM image in %s is for %s, and this machine needs one for %s", dir, i.Arch, arch)
	}
	for _, name := range booted {
		f, ok := i.Files[name]
		if !ok {
			return nil, i.broken(nil, "its manifest does not name the file "+name)
		}
		st, err := os.Stat(filepath.Join(dir, name))
		if err != nil {
			return nil, i.broken(err, "the file "+name+" cannot be read")
		}
		if st.Size() != f.Size {
			return nil, i.broken(nil, fmt.Sprintf("the file %s has %d bytes, its manifest says %d", name, st.Size(), f.Size))
		}
	}
	return i, nil
}

func (i *Image) broken(cause error, what string) error {
	e := &errdefs.Error{Class: errdefs.Invalid, Cause: cause,
		Sentence: fmt.Sprintf("the VM image in %s is damaged: %s; make it anew with `make vmimage`, or install dhow again", i.Dir, what)}
	return e
}

// contextReader ends a read when ctx does.
type contextReader struct {
	ctx context.Context
	r   io.Reader
}

func (r contextReader) Read(p []byte) (int, error) {
	if err := r.ctx.Err(); err != nil {
		return 0, err
	}
	return r.r.Read(p)
}
