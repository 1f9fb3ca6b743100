package image

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"

	"golang.org/x/sync/errgroup"

	"dhow/internal/durable"
)

// seen is what a file looked like when its digest was found right.
type seen struct {
	SHA256  string `json:"sha256"`
	Size    int64  `json:"size"`
	ModTime int64  `json:"mtime_ns"`
	Inode   uint64 `json:"inode"` // 0 where the system has none
}

// maxSeen bounds the cache file: images of other directories fall out.
const maxSeen = 64

// Verify checks the digests of the files that a machine boots from, those in parallel that have
// changed (size, modification time or inode) since they were last good; cache
// is the file that remembers that, "" for none. The error is Invalid and names
// the damaged file. A cache that cannot be read or written only costs time.
func (i *Image) Verify(ctx context.Context, cache string) error {
	var (
		mu    sync.Mutex
		known = readSeen(cache)
		fresh = map[string]seen{}
	)
	g, ctx := errgroup.WithContext(ctx)
	for _, name := range booted {
		want := i.Files[name]
		path := filepath.Join(i.Dir, name)
		st, err := os.Stat(path)
		if err != nil {
			return i.broken(err, "the file "+name+" cannot be read")
		}
		now := seen{SHA256: want.SHA256, Size: st.Size(), ModTime: st.ModTime().UnixNano(), Inode: inode(st)}
		if known[path] == now {
			continue
		}
		g.Go(func() error {
			got, err := digest(ctx, path)
			if ctx.Err() != nil {
				return ctx.Err()
			}
			if err != nil {
				return i.broken(err, "the file "+name+" cannot be read")
			}
			if got != want.SHA256 {
				return i.broken(nil, fmt.Sprintf("the file %s has the digest %.12s…, its manifest says %.12s…", name, got, want.SHA256))
			}
			mu.Lock()
			fresh[path] = now
			mu.Unlock()
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	if cache != "" && len(fresh) > 0 {
		if len(known)+len(fresh) > maxSeen {
			known = map[string]seen{}
		}
		for p, s := range fresh {
			known[p] = s
		}
		if b, err := json.Marshal(known); err == nil {
			_ = durable.WriteFile(cache, b, 0o600) // a lost cache is hashed again
		}
	}
	return nil
}

func readSeen(cache string) map[string]seen {
	known := map[string]seen{}
	if b, err := os.ReadFile(cache); err == nil && json.Unmarshal(b, &known) != nil {
		known = map[string]seen{}
	}
	return known
}

func digest(ctx context.Context, path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.CopyBuffer(h, contextReader{ctx, f}, make([]byte, 1<<20)); err != nil {
		return "", err
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}
