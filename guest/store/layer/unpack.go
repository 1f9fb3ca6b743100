//go:build linux

package layer

import (
	"context"
	"crypto/sha256"
	"errors"
	"io"

	"github.com/opencontainers/go-digest"
)

// Unpacked is the result of Unpack.
type Unpacked struct {
	DiffID      digest.Digest // of the tar stream
	Size        int64         // bytes of the tar stream
	Compression Compression
	// Tree is nil if the layer needs its parent: then DiffID and Size are right,
	// and the directory must be emptied.
	Tree *Tree
}

// Unpack decompresses, hashes and applies a layer's blob, see Apply. It reads
// the blob to its end also when the layer turns out to need its parent, so
// that the blob can be stored by the one who feeds it.
func Unpack(ctx context.Context, dir string, blob io.Reader, o Options) (u Unpacked, err error) {
	plain, format, err := Decompress(blob)
	if err != nil {
		return u, err
	}
	u.Compression = format
	sum := sha256.New()
	err = FanOut(ctx, plain,
		func(r io.Reader) (err error) {
			u.Size, err = io.Copy(sum, r)
			return err
		},
		func(r io.Reader) (err error) {
			u.Tree, err = Apply(ctx, dir, r, o)
			if errors.Is(err, ErrNeedsParent) && o.Lower == nil {
				err = nil
			}
			return err
		})
	err = errors.Join(err, plain.Close())
	if err == nil {
		// What follows the compressed stream belongs to the blob.
		_, err = io.Copy(io.Discard, blob)
	}
	u.DiffID = digest.NewDigest(digest.SHA256, sum)
	return u, err
}
