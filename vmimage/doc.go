// Package vmimage builds the image of dhow's machine: a kernel, an initramfs
// and a read-only root file system, for amd64 and arm64, with a manifest and an
// SBOM.
//
// It is called by vmimage/mkimage (make vmimage) and by tests; nothing of the
// running program imports it. It knows nothing of hypervisors: what a driver
// needs on the kernel's command line is the driver's.
//
// # Inputs
//
// Debian packages (the cloud kernel, e2fsprogs and its libraries, CA
// certificates, a static busybox), fetched and verified by apt with a
// configuration of its own, so that a foreign architecture needs nothing of the
// system's; and the guest's own programs, built with Go. Packages are resolved
// once and kept under the cache directory until it is refreshed: a build whose
// inputs did not change does nothing.
//
// # Outputs
//
//	kernel          amd64: bzImage. arm64: uncompressed Image
//	initrd          newc cpio: /init and the modules that reach the root disk
//	root.erofs      the root: guest programs, modules, file system tools, CA roots
//	manifest.json   version, digests, kernel command line, packages
//	sbom.spdx.json  SPDX 2.3
//	busybox         the static busybox and, beside it, its licence (busybox.copyright)
//	modules/        the kernel modules of root.erofs as single files
//
// The same inputs give the same bytes.
package vmimage
