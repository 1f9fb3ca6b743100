package seccomp

import (
	"sort"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

//go:generate go run gen.go

// call is a system call of one architecture.
type call struct {
	name string
	nr   uint32
}

// arch is what a filter must know of an architecture.
type arch struct {
	audit uint32 // AUDIT_ARCH_* (linux/audit.h), what the kernel puts into seccomp_data.arch
	bits  int    // of a register
	table []call // sorted by name
	add   uint32 // added to the numbers of the table
}

// x32Bit marks x32 system calls; their arch is x86-64's.
const x32Bit = 0x40000000

// armPrivate is where the numbers of 32-bit arm's own calls begin.
const armPrivate = 0xf0000

var arches = map[specs.Arch]arch{
	specs.ArchX86_64:  {0xc000003e, 64, tableAMD64[:], 0},
	specs.ArchX86:     {0x40000003, 32, table386[:], 0},
	specs.ArchX32:     {0xc000003e, 64, tableX32[:], x32Bit},
	specs.ArchAARCH64: {0xc00000b7, 64, tableARM64[:], 0},
	specs.ArchARM:     {0x40000028, 32, tableARM[:], 0},
}

// number finds a system call by name.
func (a *arch) number(name string) (uint32, bool) {
	i := sort.Search(len(a.table), func(i int) bool { return a.table[i].name >= name })
	if i == len(a.table) || a.table[i].name != name {
		return 0, false
	}
	return a.table[i].nr + a.add, true
}
