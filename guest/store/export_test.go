//go:build linux

package store

// UnpackMemory returns what is counted for layers that are being unpacked, with
// n added.
func (s *Store) UnpackMemory(n int64) int64 { return s.memory.Add(n) }

// MaxUnpackMemory is its limit.
const MaxUnpackMemory = maxUnpackMemory
