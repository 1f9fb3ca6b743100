//go:build linux

package store

import (
	"archive/tar"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path"
	"slices"
	"strings"

	"github.com/containerd/platforms"
	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"dhow/guest/store/content"
	"dhow/guest/store/gc"
	"dhow/guest/store/image"
	"dhow/guest/store/layer"
	"dhow/internal/errdefs"
)

// Limits of an archive of images; each of its files is a blob on disk, so these
// bound memory only.
const (
	maxArchiveFiles = 200_000
	maxArchiveJSON  = 16 << 20 // bytes of manifest.json, index.json
	maxArchiveName  = 4096     // bytes of a file's name, or of a link's target
	maxArchiveNames = 32 << 20 // bytes of all names
)

// Load reads an archive of images: an OCI layout or what docker save writes, of
// its old or new form, plain, gzip or zstd. The entries may come in any order;
// each is stored as it comes, and checked by its digest where its name is one.
//
// The images are returned in the archive's order; their Names are the ones
// that the archive gave them. An archive that holds no image is Invalid.
func (s *Store) Load(ctx context.Context, r io.Reader, progress func(Progress)) ([]Image, error) {
	f := newFeed(progress)
	defer f.close()
	lease := s.leases.Take()
	out, stored, err := s.load(ctx, r, f, lease)
	lease.Release()
	if err != nil {
		s.sweepSoon()
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		return out, err
	}
	// Files of the archive that belong to no image are garbage now.
	return out, s.leases.Sweep(func() error { return s.dropUnneeded(context.WithoutCancel(ctx), stored) })
}

// load returns the images and all blobs that it stored.
func (s *Store) load(ctx context.Context, r io.Reader, f *feed, lease *gc.Lease) (out []Image, stored []digest.Digest, err error) {
	plain, _, err := layer.Decompress(r)
	if err != nil {
		return nil, nil, err
	}
	defer func() { _ = plain.Close() }()
	l := &loader{s: s, lease: lease, feed: f, files: make(map[string]ocispec.Descriptor), links: make(map[string]string)}
	if err := l.read(ctx, plain); err != nil {
		return nil, nil, err
	}
	found, err := l.find(ctx)
	if err != nil {
		return nil, nil, err
	}
	for _, a := range found {
		img, err := l.install(ctx, a)
		if err != nil {
			return out, nil, err
		}
		out = append(out, img)
	}
	for _, d := range l.files {
		stored = append(stored, d.Digest)
	}
	return out, stored, nil
}

// loader is one Load.
type loader struct {
	s     *Store
	lease *gc.Lease
	feed  *feed
	files map[string]ocispec.Descriptor // by clean path: digest and size
	links map[string]string
	names int // bytes of the names above
}

// archived is an image that the archive holds.
type archived struct {
	target   ocispec.Descriptor // index or manifest; without digest: to be made
	manifest ocispec.Descriptor
	blobs    []ocispec.Descriptor // indexes and manifest
	config   ocispec.Descriptor
	layers   []ocispec.Descriptor
	names    []string
}

// read stores all files of the archive.
func (l *loader) read(ctx context.Context, r io.Reader) error {
	tr := tar.NewReader(r)
	for n := 0; ; n++ {
		h, err := tr.Next()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return layer.StreamError(err)
		}
		if n >= maxArchiveFiles {
			return errdefs.New(errdefs.Invalid, "the archive has more than %d files", maxArchiveFiles)
		}
		if len(h.Name) > maxArchiveName || len(h.Linkname) > maxArchiveName {
			return errdefs.New(errdefs.Invalid, "the archive has a name of more than %d bytes", maxArchiveName)
		}
		// Joined, the names are copies: h's are parts of a header of up to 1 MiB.
		name := path.Clean("/" + h.Name)[1:]
		if l.names += len(name) + len(h.Linkname); l.names > maxArchiveNames {
			return errdefs.New(errdefs.Invalid, "the names in the archive take more than %d bytes", maxArchiveNames)
		}
		switch h.Typeflag {
		case tar.TypeReg:
			if err := l.store(ctx, name, tr, h.Size); err != nil {
				return fmt.Errorf("%s: %w", h.Name, layer.StreamError(err))
			}
		case tar.TypeSymlink: // docker's old form: a layer that is there already
			l.links[name] = path.Join("/", path.Dir(name), h.Linkname)[1:]
		case tar.TypeLink:
			l.links[name] = path.Clean("/" + h.Linkname)[1:]
		}
	}
}

func (l *loader) store(ctx context.Context, name string, r io.Reader, size int64) (err error) {
	var want digest.Digest
	if hex, ok := strings.CutPrefix(name, "blobs/sha256/"); ok {
		want = digest.NewDigestFromEncoded(digest.SHA256, hex)
		if want.Validate() != nil {
			return errdefs.New(errdefs.Invalid, "not a digest")
		}
		l.lease.Hold(heldBlob(want))
		if i, err := l.s.content.Info(ctx, want); err == nil && i.Size == size {
			l.files[name] = ocispec.Descriptor{Digest: want, Size: size}
			return nil
		}
	}
	l.s.mu.Lock()
	l.s.seq++
	ref := fmt.Sprintf("load-%d", l.s.seq)
	l.s.mu.Unlock()
	w, err := l.s.content.Writer(ctx, ref, ocispec.Descriptor{})
	if err != nil {
		return err
	}
	defer func() { err = l.s.end(w, ref, err) }()
	if _, err := io.Copy(w, &ctxReader{ctx, r}); err != nil {
		return err
	}
	got := w.Digest()
	l.lease.Hold(heldBlob(got))
	if err := w.Commit(ctx, size, want, content.Deferred); err != nil {
		if errors.Is(err, content.ErrMismatch) {
			return errdefs.Wrap(errdefs.Invalid, err, "the archive is damaged: blob %s has the digest %s", want, got)
		}
		return err
	}
	l.files[name] = ocispec.Descriptor{Digest: got, Size: size}
	return nil
}

// ctxReader ends with its context.
type ctxReader struct {
	ctx context.Context
	r   io.Reader
}

func (c *ctxReader) Read(p []byte) (int, error) {
	if c.ctx.Err() != nil {
		return 0, context.Cause(c.ctx)
	}
	return c.r.Read(p)
}

// file finds a file of the archive, through links.
func (l *loader) file(name string) (ocispec.Descriptor, error) {
	name = path.Clean("/" + name)[1:]
	for range 8 {
		if d, ok := l.files[name]; ok {
			return d, nil
		}
		to, ok := l.links[name]
		if !ok {
			break
		}
		name = to
	}
	return ocispec.Descriptor{}, errdefs.New(errdefs.Invalid, "the archive is incomplete: it lacks %s", name)
}

// dockerManifest is one entry of manifest.json.
type dockerManifest struct {
	Config   string
	RepoTags []string
	Layers   []string
}

// find returns the images of the archive.
func (l *loader) find(ctx context.Context) ([]archived, error) {
	var list []dockerManifest
	if d, err := l.file("manifest.json"); err == nil {
		raw, err := l.s.readBlob(ctx, d.Digest, maxArchiveJSON)
		if err != nil {
			return nil, err
		}
		if err := json.Unmarshal(raw, &list); err != nil {
			return nil, errdefs.Wrap(errdefs.Invalid, err, "invalid manifest.json in archive")
		}
	}
	out, err := l.layout(ctx)
	if err != nil {
		return nil, err
	}
	// manifest.json of an archive that is a layout too gives names, and the
	// images that the layout lacks.
	for _, m := range list {
		config, err := l.file(m.Config)
		if err != nil {
			return nil, err
		}
		a := slices.IndexFunc(out, func(a archived) bool { return a.config.Digest == config.Digest })
		if a < 0 {
			made, err := l.dockerImage(m, config)
			if err != nil {
				return nil, err
			}
			out, a = append(out, made), len(out)
		}
		for _, tag := range m.RepoTags {
			if err := out[a].name(tag); err != nil {
				return nil, err
			}
		}
	}
	if len(out) == 0 {
		return nil, errdefs.New(errdefs.Invalid, "the archive holds no image: it has neither index.json nor manifest.json")
	}
	return out, nil
}

// name adds a name, full or familiar.
func (a *archived) name(s string) error {
	ref, err := reference.ParseNormalizedNamed(s)
	if err != nil {
		return errdefs.Wrap(errdefs.Invalid, err, "invalid name %q in archive", s)
	}
	if isDigested(ref) {
		return nil
	}
	full := reference.TagNameOnly(ref).String()
	for _, n := range a.names {
		if n == full {
			return nil
		}
	}
	a.names = append(a.names, full)
	return nil
}

// dockerImage makes an image of the files that docker save wrote in its old
// form. Its manifest is made here.
func (l *loader) dockerImage(m dockerManifest, config ocispec.Descriptor) (a archived, err error) {
	a.config = ocispec.Descriptor{MediaType: image.DockerConfig, Digest: config.Digest, Size: config.Size}
	for _, name := range m.Layers {
		d, err := l.file(name)
		if err != nil {
			return a, err
		}
		a.layers = append(a.layers, d)
	}
	return a, nil
}

// layout returns the images of an OCI layout, none if it is none.
func (l *loader) layout(ctx context.Context) ([]archived, error) {
	d, err := l.file("index.json")
	if err != nil {
		return nil, nil
	}
	raw, err := l.s.readBlob(ctx, d.Digest, maxArchiveJSON)
	if err != nil {
		return nil, err
	}
	index, err := image.ParseIndex(raw)
	if err != nil {
		return nil, err
	}
	var out []archived
	for _, d := range index.Manifests {
		if d.Annotations["vnd.docker.reference.type"] != "" {
			continue
		}
		a := archived{target: plainDescriptor(d)}
		ok, err := l.resolve(ctx, d, &a, 0)
		if err != nil {
			return nil, err
		}
		if !ok {
			continue
		}
		name := d.Annotations["io.containerd.image.name"]
		if ref := d.Annotations[ocispec.AnnotationRefName]; name == "" && strings.ContainsAny(ref, ":/") {
			name = ref // some write the whole name where only a tag belongs
		}
		if name != "" {
			if err := a.name(name); err != nil {
				return nil, err
			}
		}
		out = append(out, a)
	}
	return out, nil
}

func plainDescriptor(d ocispec.Descriptor) ocispec.Descriptor {
	return ocispec.Descriptor{MediaType: d.MediaType, Digest: d.Digest, Size: d.Size}
}

// resolve goes from a descriptor of the layout to the image for this machine.
// It returns false for what is no image, or is not in the archive.
func (l *loader) resolve(ctx context.Context, d ocispec.Descriptor, a *archived, depth int) (bool, error) {
	if depth > maxIndexDepth {
		return false, errdefs.New(errdefs.Invalid, "image indexes are nested more than %d deep", maxIndexDepth)
	}
	if err := content.Check(d.Digest); err != nil {
		return false, err
	}
	have, err := l.file("blobs/sha256/" + d.Digest.Encoded())
	if err != nil {
		return false, nil // a platform that was not saved
	}
	raw, err := l.s.readBlob(ctx, d.Digest, image.MaxManifest)
	if err != nil {
		return false, err
	}
	d = ocispec.Descriptor{MediaType: image.DetectMediaType(raw), Digest: d.Digest, Size: have.Size}
	switch {
	case image.IsManifest(d.MediaType):
		m, err := image.ParseManifest(raw)
		if err != nil {
			return false, nil // an artifact
		}
		a.manifest, a.config, a.layers = d, plainDescriptor(m.Config), m.Layers
		a.blobs = append(a.blobs, d)
		return true, nil
	case !image.IsIndex(d.MediaType):
		return false, nil
	}
	index, err := image.ParseIndex(raw)
	if err != nil {
		return false, err
	}
	matches, err := image.Choose(index, platforms.DefaultSpec())
	if err != nil {
		matches = index.Manifests // whatever is there
	}
	a.blobs = append(a.blobs, d)
	for _, m := range matches {
		if m.Annotations["vnd.docker.reference.type"] != "" {
			continue
		}
		if ok, err := l.resolve(ctx, m, a, depth+1); ok || err != nil {
			return ok, err
		}
	}
	return false, nil
}

// install unpacks an image of the archive and makes it visible.
func (l *loader) install(ctx context.Context, a archived) (img Image, err error) {
	raw, err := l.s.readBlob(ctx, a.config.Digest, image.MaxManifest)
	if err != nil {
		return img, err
	}
	config, err := image.ParseConfig(raw)
	if err != nil {
		return img, err
	}
	for _, b := range a.layers {
		if _, err := l.s.content.Info(ctx, b.Digest); err != nil {
			return img, errdefs.Wrap(errdefs.Invalid, err, "the archive is incomplete: it lacks layer %s", b.Digest)
		}
	}
	if a.manifest.Digest == "" {
		if err := l.makeManifest(ctx, &a); err != nil {
			return img, err
		}
	}
	layers, err := layersOf(a.layers, config.RootFS.DiffIDs, nil)
	if err != nil {
		return img, err
	}
	jobs, err := l.s.startLayers(ctx, l.lease, layers, l.feed)
	if err != nil {
		return img, err
	}
	defer l.s.releaseLayers(jobs, l.feed)
	n := newImage{
		record: image.Record{
			ID: a.config.Digest, Manifest: a.manifest,
			Blobs: image.WithoutDuplicates(append(append(a.blobs, a.config), a.layers...)),
		},
		config: raw, names: a.names, target: a.target,
	}
	img, _, err = l.s.publish(ctx, n, jobs)
	img.Names = a.names
	return img, err
}

// makeManifest makes the manifest of an image that came without one.
func (l *loader) makeManifest(ctx context.Context, a *archived) error {
	m := ocispec.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: image.DockerManifest, Config: a.config}
	for i, b := range a.layers {
		var head [4]byte
		r, err := l.s.content.Open(ctx, b.Digest)
		if err != nil {
			return err
		}
		n, err := r.ReadAt(head[:], 0)
		if err = errors.Join(ignoreEOF(err), r.Close()); err != nil {
			return err
		}
		a.layers[i].MediaType = image.DockerLayerType(head[:n])
		m.Layers = append(m.Layers, a.layers[i])
	}
	raw, err := json.Marshal(m)
	if err != nil {
		return err
	}
	a.manifest = ocispec.Descriptor{MediaType: m.MediaType, Digest: digest.FromBytes(raw), Size: int64(len(raw))}
	a.target, a.blobs = a.manifest, []ocispec.Descriptor{a.manifest}
	l.lease.Hold(heldBlob(a.manifest.Digest))
	return l.s.keepBlob(ctx, a.manifest, raw)
}

func ignoreEOF(err error) error {
	if err == io.EOF {
		return nil
	}
	return err
}
