#!/usr/bin/env bash
# Installs the system packages that are missing, and says which. Debian and Ubuntu.
set -euo pipefail
declare -A need=(                 # a file that the package brings → the package
  [qemu-system-x86_64]=qemu-system-x86
  [qemu-system-aarch64]=qemu-system-arm
  [mkfs.erofs]=erofs-utils
  [mke2fs]=e2fsprogs
  [debootstrap]=debootstrap
  [busybox]=busybox-static
  [nft]=nftables
  [cpio]=cpio
)
missing=()
[ -f /usr/share/keyrings/debian-archive-keyring.gpg ] || missing+=(debian-archive-keyring)   # the image is made of Debian's packages
for cmd in "${!need[@]}"; do
  command -v "$cmd" >/dev/null || [ -x "/usr/sbin/$cmd" ] || [ -x "/sbin/$cmd" ] || missing+=("${need[$cmd]}")
done
[ ${#missing[@]} = 0 ] && exit 0
mapfile -t missing < <(printf '%s\n' "${missing[@]}" | sort)
if ! command -v apt-get >/dev/null; then
  echo "these packages are missing: ${missing[*]}; install them and try again" >&2
  exit 1
fi
echo "Installing system packages: ${missing[*]}"
sudo=; [ "$(id -u)" = 0 ] || sudo=sudo
export DEBIAN_FRONTEND=noninteractive
log=$(mktemp)
if ! { $sudo apt-get -q update && $sudo apt-get -q -y --no-install-recommends install "${missing[@]}"; } >"$log" 2>&1 </dev/null; then
  tail -20 "$log" >&2
  echo "apt-get could not install: ${missing[*]}" >&2
  exit 1
fi
rm -f "$log"
