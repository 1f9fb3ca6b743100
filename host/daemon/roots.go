package daemon

import (
	"bytes"
	"encoding/pem"
	"io/fs"
	"os"
	"path/filepath"
)

// maxRoots bounds the PEM that a guest is given; the contract's messages and the
// initramfs are small.
const maxRoots = 2 << 20

// certificates returns the CERTIFICATE blocks of the files and of the files in
// the directories, each once. What is missing or malformed is left out.
func certificates(paths []string) []byte {
	var out bytes.Buffer
	seen := map[string]bool{}
	add := func(b []byte) {
		for {
			var block *pem.Block
			if block, b = pem.Decode(b); block == nil {
				return
			}
			if block.Type != "CERTIFICATE" || seen[string(block.Bytes)] || out.Len() > maxRoots {
				continue
			}
			seen[string(block.Bytes)] = true
			_ = pem.Encode(&out, &pem.Block{Type: block.Type, Bytes: block.Bytes}) // into memory
		}
	}
	for _, p := range paths {
		_ = filepath.WalkDir(p, func(p string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() {
				return nil
			}
			if b, err := os.ReadFile(p); err == nil {
				add(b)
			}
			return nil
		})
	}
	return out.Bytes()
}
