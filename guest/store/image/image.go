//go:build linux

package image

import (
	"encoding/json"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"

	"dhow/internal/errdefs"
)

// Image is an image of the store. It is a value: nothing changes it, and its
// slices and maps are not to be written.
type Image struct {
	ID       digest.Digest      // of the config
	Names    []string           // full references, name:tag and name@digest, sorted
	Target   ocispec.Descriptor // index or manifest, as pulled by the name asked for
	Manifest ocispec.Descriptor // of the one platform that is here
	Config   []byte             // raw
	// Image is the decoded config with docker's extensions to it.
	Image       dockerspec.DockerOCIImage
	ChainID     digest.Digest // topmost layer, "" for an image without layers
	Size        int64         // bytes on disk of all layers, unpacked
	ContentSize int64         // bytes of all blobs, as pulled
	Created     time.Time
	Parent      digest.Digest // image that it was committed from, or ""
	LastTagged  time.Time     // when a name was last given to it
}

// Platform returns the platform of the image.
func (i Image) Platform() ocispec.Platform { return i.Image.Platform }

// ChainIDs returns the chain IDs of the image's layers, bottom first.
func (i Image) ChainIDs() []digest.Digest {
	return ChainIDs(i.Image.RootFS.DiffIDs)
}

// ChainIDs returns the chain ID of each layer, bottom first.
func ChainIDs(diffIDs []digest.Digest) []digest.Digest {
	return identity.ChainIDs(append([]digest.Digest(nil), diffIDs...))
}

// ParseConfig decodes an image config and checks what the store relies on.
func ParseConfig(raw []byte) (dockerspec.DockerOCIImage, error) {
	var c dockerspec.DockerOCIImage
	if err := json.Unmarshal(raw, &c); err != nil {
		return c, errdefs.Wrap(errdefs.Invalid, err, "invalid image configuration")
	}
	// docker writes no type for images of its first format with layers.
	if c.RootFS.Type != "" && c.RootFS.Type != "layers" {
		return c, errdefs.New(errdefs.Invalid, "invalid rootfs in image configuration")
	}
	for _, d := range c.RootFS.DiffIDs {
		if d.Validate() != nil || d.Algorithm() != digest.SHA256 {
			return c, errdefs.New(errdefs.Invalid, "invalid rootfs in image configuration: bad diff ID %q", string(d))
		}
	}
	return c, nil
}

// Record is what the database keeps of an image, besides its config.
type Record struct {
	ID       digest.Digest        `json:"id"`
	Manifest ocispec.Descriptor   `json:"manifest"`
	Targets  []ocispec.Descriptor `json:"targets"` // what it was pulled as, first first
	Blobs    []ocispec.Descriptor `json:"blobs"`   // all blobs that belong to it
	ChainID  digest.Digest        `json:"chain"`
	Size     int64                `json:"size"`
	Created  time.Time            `json:"created"`
	Parent   digest.Digest        `json:"parent,omitempty"`
	Tagged   time.Time            `json:"tagged,omitempty"`
}
