//go:build linux

package boot

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
)

// Layout of ext4's superblock (Documentation/filesystems/ext4/super.rst), which
// is 1024 bytes at offset 1024 of the disk.
const (
	sbOffset = 1024
	sbSize   = 1024

	sbBlocksLo   = 0x04
	sbLogBlock   = 0x18
	sbMagic      = 0x38
	sbState      = 0x3A
	sbIncompat   = 0x60
	sbROCompat   = 0x64
	sbLabel      = 0x78 // 16 bytes
	sbBlocksHi   = 0x150
	sbErrorCount = 0x194
	sbChecksum   = 0x3FC

	ext4Magic = 0xEF53

	stateValid  = 1
	stateErrors = 2
	stateOrphan = 4

	incompatRecover  = 0x4
	incompat64bit    = 0x80
	roMetadataCsum   = 0x400
	roOrphanPresent  = 0x10000
	maxLogBlock      = 6 // 64 KiB blocks
	labelBeingFormed = "dhow-formatting"
	labelData        = "dhow-data"
)

// A superblock is what init needs to know of an ext4 file system.
type superblock struct {
	BlockSize  int64 // bytes
	Blocks     int64
	Label      string
	Clean      bool   // unmounted properly, no errors recorded, checksum right
	WhyUnclean string // for the console
}

// Size is the file system's size in bytes.
func (s superblock) Size() int64 { return s.BlockSize * s.Blocks }

// errNotExt4 means that there is no ext4 superblock.
var errNotExt4 = errors.New("no ext4 superblock")

// parseSuperblock reads the superblock from the disk's first bytes (at least
// 2048). The error is errNotExt4 if the magic number is not there, or says what
// is impossible in it.
func parseSuperblock(head []byte) (superblock, error) {
	if !hasMagic(head) {
		return superblock{}, errNotExt4
	}
	sb := head[sbOffset : sbOffset+sbSize]
	le := binary.LittleEndian
	logBlock := le.Uint32(sb[sbLogBlock:])
	if logBlock > maxLogBlock {
		return superblock{}, fmt.Errorf("ext4 superblock: block size 2^%d", 10+uint64(logBlock))
	}
	incompat, ro := le.Uint32(sb[sbIncompat:]), le.Uint32(sb[sbROCompat:])
	blocks := uint64(le.Uint32(sb[sbBlocksLo:]))
	if incompat&incompat64bit != 0 {
		blocks |= uint64(le.Uint32(sb[sbBlocksHi:])) << 32
	}
	s := superblock{BlockSize: 1024 << logBlock, Label: cString(sb[sbLabel : sbLabel+16])}
	if blocks == 0 || blocks > uint64(1<<62)/uint64(s.BlockSize) {
		return superblock{}, fmt.Errorf("ext4 superblock: %d blocks", blocks)
	}
	s.Blocks = int64(blocks)
	state := le.Uint16(sb[sbState:])
	switch {
	case ro&roMetadataCsum != 0 && le.Uint32(sb[sbChecksum:]) != sbSum(sb):
		s.WhyUnclean = "the superblock's checksum is wrong"
	case state&stateErrors != 0 || le.Uint32(sb[sbErrorCount:]) != 0:
		s.WhyUnclean = "the kernel has recorded errors"
	case state&stateValid == 0:
		s.WhyUnclean = "it was not unmounted"
	case incompat&incompatRecover != 0:
		s.WhyUnclean = "its journal has to be replayed"
	case state&stateOrphan != 0 || ro&roOrphanPresent != 0:
		s.WhyUnclean = "deleted files have to be freed"
	default:
		s.Clean = true
	}
	return s, nil
}

// hasMagic reports whether head holds ext4's magic number: what decide says then
// does not depend on more than the superblock.
func hasMagic(head []byte) bool {
	return len(head) >= sbOffset+sbSize && binary.LittleEndian.Uint16(head[sbOffset+sbMagic:]) == ext4Magic
}

// setLabel writes a label (at most 16 bytes) into the superblock in head, and
// its checksum where the file system has them.
func setLabel(head []byte, label string) {
	sb := head[sbOffset : sbOffset+sbSize]
	clear(sb[sbLabel : sbLabel+16])
	copy(sb[sbLabel:sbLabel+16], label)
	if binary.LittleEndian.Uint32(sb[sbROCompat:])&roMetadataCsum != 0 {
		binary.LittleEndian.PutUint32(sb[sbChecksum:], sbSum(sb))
	}
}

// sbSum is ext4's checksum: crc32c with all ones at the start and no final
// inversion.
func sbSum(sb []byte) uint32 {
	return ^crc32.Checksum(sb[:sbChecksum], crc32.MakeTable(crc32.Castagnoli))
}

func cString(b []byte) string {
	for i, c := range b {
		if c == 0 {
			return string(b[:i])
		}
	}
	return string(b)
}

// A diskAction is what is to be done with the data disk before it is mounted.
type diskAction int

const (
	actMount  diskAction = iota // clean: mount it
	actCheck                    // e2fsck first
	actFormat                   // blank, or a format did not finish
	actRefuse                   // holds something that is not ours: do not touch
)

// blankSize is how much of a disk's start must be zero for it to count as new.
const blankSize = 1 << 20

// decide is the table of what is done with a disk that starts with head
// (blankSize bytes, or the whole of a smaller disk). why is for the console.
func decide(head []byte) (act diskAction, sb superblock, why string) {
	sb, err := parseSuperblock(head)
	switch {
	case err == nil && sb.Label == labelBeingFormed:
		return actFormat, sb, "its format did not finish"
	case err == nil && sb.Clean:
		return actMount, sb, ""
	case err == nil:
		return actCheck, sb, sb.WhyUnclean
	case errors.Is(err, errNotExt4) && allZero(head):
		return actFormat, sb, "it is empty"
	case errors.Is(err, errNotExt4):
		return actRefuse, sb, "it holds data that is not an ext4 file system"
	}
	// The magic number is there, the rest is damaged: e2fsck can take a backup
	// superblock.
	return actCheck, sb, err.Error()
}

func allZero(b []byte) bool {
	for len(b) >= 8 {
		if binary.LittleEndian.Uint64(b) != 0 {
			return false
		}
		b = b[8:]
	}
	for _, c := range b {
		if c != 0 {
			return false
		}
	}
	return true
}
