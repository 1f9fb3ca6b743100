//go:build linux

package store

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/containerd/platforms"
	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"dhow/guest/store/gc"
	"dhow/guest/store/image"
	"dhow/guest/store/registry"
	"dhow/internal/errdefs"
)

// Auth holds the credentials for one registry.
type Auth = registry.Auth

// PullOptions change what Pull does. Progress may be nil; it is called from one
// goroutine, and not after Pull has returned.
type PullOptions struct {
	Platform *ocispec.Platform // nil: the machine's
	Auth     Auth
	Progress func(Progress)
}

// Login asks the registry that auth.ServerAddress names ("" = Docker Hub)
// whether it takes the credentials, and returns the identity token to keep
// instead of the password, if it gave one. The errors have docker's sentences;
// refused credentials are of class Denied.
func (s *Store) Login(ctx context.Context, auth Auth) (identityToken string, err error) {
	return s.reg.Login(ctx, auth)
}

// maxIndexDepth is how deep indexes may be nested in indexes.
const maxIndexDepth = 4

// Pull brings the image that ref names in its registry, a reference with a tag
// or a digest; both together mean the digest. It reports whether that changed
// what ref points to. The image's Target has the digest of the reference.
//
// Layers that the store has are not downloaded, and pulls that want the same
// layer at the same time share its download. The errors have docker's
// sentences.
func (s *Store) Pull(ctx context.Context, ref reference.Named, o PullOptions) (img Image, newer bool, err error) {
	f := newFeed(o.Progress)
	defer f.close()
	img, newer, err = s.pull(ctx, ref, o, f)
	if err != nil {
		s.sweepSoon()
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		return img, false, registry.Explain(err, ref)
	}
	if o.Platform != nil && !image.Matches(img.Platform(), *o.Platform) {
		f.report(Progress{Action: "WARNING: " + PlatformMismatch(reference.FamiliarString(ref), *o.Platform).Error()})
	}
	return img, newer, nil
}

// PlatformMismatch returns docker's error for an image that is here, but not
// for the platform asked for.
func PlatformMismatch(ref string, want ocispec.Platform) error {
	return errdefs.New(errdefs.NotFound, "image with reference %s was found but does not provide the specified platform (%s)", ref, platforms.FormatAll(want))
}

func (s *Store) pull(ctx context.Context, ref reference.Named, o PullOptions, f *feed) (img Image, newer bool, err error) {
	ref, by, err := pullReference(ref)
	if err != nil {
		return img, false, err
	}
	lease := s.leases.Take()
	defer lease.Release()
	p := &puller{s: s, repo: s.reg.Repository(ref, o.Auth), ref: ref, lease: lease}
	raw, target, err := p.repo.Manifest(ctx, by)
	if err != nil {
		return img, false, err
	}
	want := platforms.DefaultSpec()
	if o.Platform != nil {
		want = *o.Platform
	}
	found, err := p.resolve(ctx, raw, target, want, 0)
	if err != nil {
		return img, false, err
	}
	layers, err := layersOf(found.manifest.Layers, found.config.RootFS.DiffIDs, p.blob)
	if err != nil {
		return img, false, err
	}
	for i, b := range p.blobs {
		if err := s.keepBlob(ctx, b, p.raw[i]); err != nil {
			return img, false, err
		}
	}
	jobs, err := s.startLayers(ctx, lease, layers, f)
	if err != nil {
		return img, false, err
	}
	defer s.releaseLayers(jobs, f)
	n := newImage{
		record: image.Record{
			ID: found.manifest.Config.Digest, Manifest: found.desc,
			Blobs: image.WithoutDuplicates(append(p.blobs, found.manifest.Layers...)),
		},
		config: found.rawConfig, target: target,
	}
	if n.names, err = namesOf(ref, target.Digest); err != nil {
		return img, false, err
	}
	if err := s.haveBlobs(ctx, found.manifest.Layers, jobs, p.blob); err != nil {
		return img, false, err
	}
	return s.publish(ctx, n, jobs)
}

// pullReference returns the reference that counts, and what to ask the
// registry for.
func pullReference(ref reference.Named) (reference.Named, string, error) {
	if d, ok := ref.(reference.Digested); ok {
		c, err := reference.WithDigest(reference.TrimNamed(ref), d.Digest())
		return c, d.Digest().String(), err
	}
	if t, ok := reference.TagNameOnly(ref).(reference.NamedTagged); ok {
		return t, t.Tag(), nil
	}
	return nil, "", fmt.Errorf("reference %s has neither tag nor digest", ref)
}

// namesOf returns the names that a pulled image gets: the reference itself,
// and its repository with the digest.
func namesOf(ref reference.Named, d digest.Digest) ([]string, error) {
	c, err := reference.WithDigest(reference.TrimNamed(ref), d)
	if err != nil {
		return nil, err
	}
	if _, ok := ref.(reference.Digested); ok {
		return []string{c.String()}, nil
	}
	return []string{ref.String(), c.String()}, nil
}

// puller reads manifests for one pull.
type puller struct {
	s     *Store
	repo  *registry.Repository
	ref   reference.Named
	lease *gc.Lease
	blobs []ocispec.Descriptor // manifests and config that were read
	raw   [][]byte
}

// resolved is the image that was chosen.
type resolved struct {
	desc      ocispec.Descriptor
	manifest  ocispec.Manifest
	config    ocispec.Image
	rawConfig []byte
}

func (p *puller) add(d ocispec.Descriptor, raw []byte) {
	p.lease.Hold(heldBlob(d.Digest))
	p.blobs, p.raw = append(p.blobs, d), append(p.raw, raw)
}

// resolve goes from a manifest or index to the image for a platform.
func (p *puller) resolve(ctx context.Context, raw []byte, d ocispec.Descriptor, want ocispec.Platform, depth int) (r resolved, err error) {
	switch {
	case image.IsSchema1(d.MediaType):
		return r, schema1(p.ref)
	case image.IsManifest(d.MediaType):
		p.add(d, raw)
		return p.image(ctx, raw, d)
	case !image.IsIndex(d.MediaType):
		return r, errdefs.New(errdefs.Invalid, "unsupported manifest format")
	case depth >= maxIndexDepth:
		return r, errdefs.New(errdefs.Invalid, "image indexes are nested more than %d deep", maxIndexDepth)
	}
	p.add(d, raw)
	index, err := image.ParseIndex(raw)
	if err != nil {
		return r, err
	}
	matches, err := image.Choose(index, want)
	if err != nil {
		return r, err
	}
	var first error
	for _, m := range matches {
		sub, desc, err := p.repo.Manifest(ctx, m.Digest.String())
		if err != nil {
			return r, err
		}
		if r, err = p.resolve(ctx, sub, desc, want, depth+1); err == nil {
			return r, nil
		}
		if !image.IsIndex(desc.MediaType) || !errdefs.Is(err, errdefs.NotFound) {
			return r, err
		}
		if first == nil {
			first = err // a nested index without the platform: the next match
		}
	}
	return r, first
}

func schema1(ref reference.Named) error {
	return errdefs.New(errdefs.Invalid, "Docker Image Format v1 and Docker Image manifest version 2, schema 1 support has been removed. "+
		"Suggest the author of %s to upgrade the image to the OCI Format or Docker Image manifest v2, schema 2. "+
		"More information at https://docs.docker.com/go/deprecated-image-specs/", ref)
}

// image reads the config of a manifest.
func (p *puller) image(ctx context.Context, raw []byte, d ocispec.Descriptor) (r resolved, err error) {
	r.desc = d
	if r.manifest, err = image.ParseManifest(raw); err != nil {
		return r, err
	}
	c := r.manifest.Config
	p.lease.Hold(heldBlob(c.Digest))
	r.rawConfig, err = p.s.readBlob(ctx, c.Digest, image.MaxManifest)
	if errdefs.Is(err, errdefs.NotFound) {
		r.rawConfig, err = p.repo.BlobBytes(ctx, c, image.MaxManifest)
		if err != nil && ctx.Err() == nil {
			return r, wrapConfig(registry.Explain(err, p.ref))
		}
	}
	if err != nil {
		return r, err
	}
	if digest.FromBytes(r.rawConfig) != c.Digest {
		return r, wrapConfig(errdefs.New(errdefs.Invalid, "image config verification failed for digest %s", c.Digest))
	}
	decoded, err := image.ParseConfig(r.rawConfig)
	if err != nil {
		return r, err
	}
	r.config = decoded.Image
	if os := r.config.OS; os != "" && os != "linux" {
		return r, errdefs.New(errdefs.Invalid, "image operating system %q cannot be used on this platform: operating system is not supported", os)
	}
	p.add(c, r.rawConfig)
	return r, nil
}

func wrapConfig(err error) error {
	return errdefs.Wrap(errdefs.ClassOf(err), err, "error pulling image configuration: %s", errdefs.Sentence(err))
}

// blob opens a blob in the registry.
func (p *puller) blob(ctx context.Context, d ocispec.Descriptor) io.ReadCloser {
	return p.repo.Blob(ctx, d)
}

// haveBlobs makes sure that all layer blobs of an image are stored, also those
// of layers that were there unpacked already, from an image with other blobs
// of the same content.
func (s *Store) haveBlobs(ctx context.Context, blobs []ocispec.Descriptor, jobs []*layerJob, fetch fetchFunc) error {
	inJob := make(map[digest.Digest]bool)
	for _, j := range jobs {
		inJob[j.w.blob.Digest] = true
	}
	for _, b := range blobs {
		if inJob[b.Digest] {
			continue
		}
		if _, err := s.content.Info(ctx, b.Digest); !errdefs.Is(err, errdefs.NotFound) {
			if err != nil {
				return err
			}
			continue
		}
		if err := s.fetchBlob(ctx, b, fetch); err != nil {
			return err
		}
	}
	return nil
}

// fetchBlob stores a blob without unpacking it.
func (s *Store) fetchBlob(ctx context.Context, d ocispec.Descriptor, fetch fetchFunc) error {
	unlock, err := s.blobs.lock(ctx, string(d.Digest))
	if err != nil {
		return err
	}
	defer unlock()
	j := &layerJob{w: wantedLayer{blob: d}}
	name := "layer-" + string(d.Digest)
	w, err := s.content.Writer(ctx, name, d)
	if err != nil {
		return ignoreExists(err)
	}
	body := fetch(ctx, d)
	err = j.keep(ctx, w, body)
	return s.end(w, name, errors.Join(err, body.Close()))
}
