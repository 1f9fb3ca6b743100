//go:build linux

package image

import (
	"bytes"
	"encoding/json"
	"slices"
	"sort"
	"strings"

	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"

	"dhow/internal/errdefs"
)

// The media types of docker's second manifest schema, and of the first, which
// is refused.
const (
	DockerManifest      = "application/vnd.docker.distribution.manifest.v2+json"
	DockerIndex         = "application/vnd.docker.distribution.manifest.list.v2+json"
	DockerLayer         = "application/vnd.docker.image.rootfs.diff.tar.gzip"
	DockerForeignLayer  = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"
	DockerConfig        = dockerspec.DockerOCIImageMediaType
	DockerSchema1       = "application/vnd.docker.distribution.manifest.v1+json"
	DockerSchema1Signed = "application/vnd.docker.distribution.manifest.v1+prettyjws"
)

// IsIndex reports whether a media type is an index or manifest list.
func IsIndex(mediaType string) bool {
	return mediaType == ocispec.MediaTypeImageIndex || mediaType == DockerIndex
}

// IsManifest reports whether a media type is an image manifest.
func IsManifest(mediaType string) bool {
	return mediaType == ocispec.MediaTypeImageManifest || mediaType == DockerManifest
}

// IsSchema1 reports whether a media type is docker's first manifest schema.
func IsSchema1(mediaType string) bool {
	return mediaType == DockerSchema1 || mediaType == DockerSchema1Signed
}

// MaxManifest bounds the bytes of a manifest, index or config.
const MaxManifest = 8 << 20

// DetectMediaType returns the media type of a manifest or index: the one it
// states, or else what its fields say, whatever a registry calls it. It is ""
// for something else.
func DetectMediaType(raw []byte) string {
	var m struct {
		MediaType     string            `json:"mediaType"`
		SchemaVersion int               `json:"schemaVersion"`
		Config        json.RawMessage   `json:"config"`
		Layers        json.RawMessage   `json:"layers"`
		Manifests     json.RawMessage   `json:"manifests"`
		FSLayers      json.RawMessage   `json:"fsLayers"`
		Signatures    []json.RawMessage `json:"signatures"`
	}
	if json.Unmarshal(raw, &m) != nil {
		return ""
	}
	switch {
	case m.SchemaVersion == 1 && m.FSLayers != nil && m.Signatures != nil:
		return DockerSchema1Signed
	case m.SchemaVersion == 1:
		return DockerSchema1
	case m.MediaType != "":
		return m.MediaType
	case m.Manifests != nil && m.Config == nil && m.Layers == nil:
		return ocispec.MediaTypeImageIndex
	case m.Config != nil && m.Manifests == nil:
		return ocispec.MediaTypeImageManifest
	}
	return ""
}

// ParseManifest decodes and checks an image manifest.
func ParseManifest(raw []byte) (ocispec.Manifest, error) {
	var m ocispec.Manifest
	if err := json.Unmarshal(raw, &m); err != nil {
		return m, errdefs.Wrap(errdefs.Invalid, err, "invalid image manifest")
	}
	if err := checkDescriptor(m.Config); err != nil {
		return m, err
	}
	switch m.Config.MediaType {
	case ocispec.MediaTypeImageConfig, DockerConfig, "application/octet-stream", "text/html", "":
		// The odd ones are configs as some registries once stored them.
	default:
		return m, errdefs.New(errdefs.Invalid, "Encountered remote %q(%s) when fetching", m.Config.MediaType, class(m.Config.MediaType))
	}
	for _, l := range m.Layers {
		if err := checkDescriptor(l); err != nil {
			return m, err
		}
		if !isLayer(l.MediaType) {
			return m, errdefs.New(errdefs.Invalid, "unsupported media type %s", l.MediaType)
		}
	}
	return m, nil
}

// class names what docker names when it is asked to run such a thing.
func class(mediaType string) string {
	switch {
	case strings.HasPrefix(mediaType, "application/vnd.docker.plugin."):
		return "plugin"
	}
	return "unknown"
}

func isLayer(mediaType string) bool {
	base, _, _ := strings.Cut(mediaType, "+")
	switch base {
	case ocispec.MediaTypeImageLayer, "application/vnd.oci.image.layer.nondistributable.v1.tar",
		DockerLayer, DockerForeignLayer, "application/vnd.docker.image.rootfs.diff.tar",
		"application/vnd.docker.image.rootfs.diff.tar.zstd":
		return true
	}
	return false
}

func checkDescriptor(d ocispec.Descriptor) error {
	if d.Digest.Validate() != nil || d.Digest.Algorithm() != digest.SHA256 {
		return errdefs.New(errdefs.Invalid, "could not validate digest %q", string(d.Digest))
	}
	if d.Size < 0 {
		return errdefs.New(errdefs.Invalid, "blob %s has a negative size", d.Digest)
	}
	return nil
}

// ParseIndex decodes and checks an index or manifest list.
func ParseIndex(raw []byte) (ocispec.Index, error) {
	var i ocispec.Index
	if err := json.Unmarshal(raw, &i); err != nil {
		return i, errdefs.Wrap(errdefs.Invalid, err, "invalid image index")
	}
	for _, d := range i.Manifests {
		if err := checkDescriptor(d); err != nil {
			return i, err
		}
	}
	return i, nil
}

// Choose returns the manifests of an index that the platform can run, best
// first; none is an error in docker's words. Attestations and what is neither
// manifest nor index are never chosen; an entry that names no platform is.
func Choose(i ocispec.Index, want ocispec.Platform) ([]ocispec.Descriptor, error) {
	match := platforms.Only(want)
	var out []ocispec.Descriptor
	for _, d := range i.Manifests {
		if !IsManifest(d.MediaType) && !IsIndex(d.MediaType) && !IsSchema1(d.MediaType) && d.MediaType != "" {
			continue
		}
		if d.Annotations["vnd.docker.reference.type"] != "" {
			continue
		}
		if d.Platform == nil || match.Match(*d.Platform) {
			out = append(out, d)
		}
	}
	if len(out) == 0 {
		return nil, errdefs.New(errdefs.NotFound, "no matching manifest for %s in the manifest list entries", platforms.FormatAll(want))
	}
	sort.SliceStable(out, func(a, b int) bool {
		pa, pb := out[a].Platform, out[b].Platform
		if pa == nil || pb == nil {
			return pa != nil && pb == nil
		}
		return match.Less(*pa, *pb)
	})
	return out, nil
}

// Matches reports whether an image of platform have can be used where want is
// asked for.
func Matches(have, want ocispec.Platform) bool {
	if have.OS == "" && have.Architecture == "" {
		return true // a config that says nothing
	}
	return platforms.Only(want).Match(have)
}

// WithoutDuplicates returns descriptors with each digest once.
func WithoutDuplicates(ds []ocispec.Descriptor) []ocispec.Descriptor {
	var out []ocispec.Descriptor
	for _, d := range ds {
		if !slices.ContainsFunc(out, func(o ocispec.Descriptor) bool { return o.Digest == d.Digest }) {
			out = append(out, d)
		}
	}
	return out
}

// DockerLayerType returns docker's media type for a layer that begins with
// head.
func DockerLayerType(head []byte) string {
	const plain = "application/vnd.docker.image.rootfs.diff.tar"
	switch {
	case bytes.HasPrefix(head, []byte{0x1f, 0x8b}):
		return DockerLayer
	case bytes.HasPrefix(head, []byte{0x28, 0xb5, 0x2f, 0xfd}):
		return plain + ".zstd"
	}
	return plain
}
