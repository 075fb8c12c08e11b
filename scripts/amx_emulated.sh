#!/bin/sh
# Runs the kernels with AMX on a processor that has it: Bochs's Sapphire Rapids, in a small guest of
# a Linux kernel and tests/kernels/amx_guest.cpp as its only program.
#
#     scripts/amx_emulated.sh FOLDER [PARAMETER ...]
#
# Parameters go to the guest's kernel; `checks=shapes,bytes` runs those checks alone. FOLDER keeps
# what was downloaded and built (1 GB), so that the next time takes a minute or two. FOLDER/guest/init
# runs as well by itself, on a real processor.
#
# For x86-64 with apt, a C++ compiler, make and Loire's virtual environment. Nothing is installed: the
# packages are unpacked in FOLDER, and their programs run with their own C library.
set -eu
[ $# -ge 1 ] || { sed -n '2,/^set/s/^# \{0,1\}//p' "$0"; exit 2; }
cd "$(dirname "$0")/.."
mkdir -p "$1" && folder=$(cd "$1" && pwd) && shift
root=$folder/root bochs=$folder/bochs-3.0 guest=$folder/guest
say() { echo "== $*"; }

if [ ! -e "$folder/unpacked" ]; then
    say "downloading Debian 13's packages"
    mirror=${MIRROR:-$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 'Label: Debian' | head -n 1)}
    mkdir -p "$folder/apt/lists/partial" "$folder/apt/archives/partial" "$root"
    : > "$folder/apt/status"  # nothing is installed: all that is needed is downloaded
    for kind in deb deb-src; do
        echo "$kind [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror trixie main"
    done > "$folder/apt/sources.list"
    apt="apt-get -qq -o Dir::Etc::sourcelist=$folder/apt/sources.list -o Dir::Etc::sourceparts=/dev/null
        -o Dir::State::lists=$folder/apt/lists -o Dir::State::status=$folder/apt/status
        -o Dir::Cache=$folder/apt -o APT::Sandbox::User=root"
    $apt update
    $apt install --download-only --yes --no-install-recommends \
        bochsbios vgabios isolinux syslinux-common xorriso cpio linux-image-cloud-amd64
    for package in "$folder"/apt/archives/*.deb; do dpkg -x "$package" "$root"; done
    # (Where the mirror lacks the package's description, which is not needed, this fails in the end.)
    (cd "$folder" && $apt source --download-only bochs) || test -e "$folder/bochs_3.0+dfsg.orig.tar.xz"
    touch "$folder/unpacked"
fi

if [ ! -x "$bochs/bochs" ]; then
    say "building Bochs (some minutes)"
    rm -rf "$bochs" && tar -xf "$folder/bochs_3.0+dfsg.orig.tar.xz" -C "$folder"
    patch --quiet -p1 -d "$bochs" < tests/kernels/bochs_3.0.patch
    (cd "$bochs" && ./configure --with-nogui --enable-cpu-level=6 --enable-x86-64 --enable-avx --enable-evex \
        --enable-amx --enable-smp --enable-all-optimizations --enable-protection-keys --disable-plugins \
        --disable-docbook --disable-show-ips && make -j2) > "$folder/bochs.log" 2>&1 || { tail "$folder/bochs.log"; exit 1; }
fi

say "building the library as setup.py does, and the guest"
rm -rf "$guest" && mkdir -p "$guest/iso"
${PYTHON:-.venv/bin/python} setup.py -q build_ext --build-temp "$guest/objects" --build-lib "$guest" > "$guest/build.log" 2>&1
${CXX:-g++} -std=c++17 -O2 -Wall -Wextra -ffp-contract=off -pthread -static -DLOIRE_HAS_AMX \
    -I src/loire/kernels/native/source tests/kernels/amx_guest.cpp \
    $(find "$guest/objects" -name '*.o' ! -name self_test.o) -o "$guest/init"  # (it includes self_test.cpp)

unpacked() { "$root/usr/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2" --library-path "$root/usr/lib/x86_64-linux-gnu" "$root/usr/bin/$@"; }
(cd "$guest" && echo init | unpacked cpio --create --quiet --format=newc) > "$guest/iso/initrd"
cp "$root"/boot/vmlinuz-* "$guest/iso/linux"
cp "$root/usr/lib/ISOLINUX/isolinux.bin" "$root/usr/lib/syslinux/modules/bios/ldlinux.c32" "$guest/iso"
# no5lvl: Bochs's return from system management mode fails with five levels of pages.
cat > "$guest/iso/isolinux.cfg" <<END
default guest
label guest
kernel linux
initrd initrd
append console=ttyS0 quiet rdinit=/init tsc=reliable mitigations=off no5lvl panic=-1 reboot=t $*
END
unpacked xorriso -as mkisofs -quiet -o "$guest/guest.iso" -b isolinux.bin -c boot.cat -no-emul-boot \
    -boot-load-size 4 -boot-info-table "$guest/iso" 2> "$guest/xorriso.log"
# Time in the guest goes by instructions, 200 million a second, however long they take here: so the
# library's own limits of time hold there as they are.
cat > "$guest/bochsrc" <<END
config_interface: textconfig
display_library: nogui
cpu: model=sapphire_rapids, count=2, ips=200000000, reset_on_triple_fault=0
memory: guest=512, host=512
romimage: file=$root/usr/share/bochs/BIOS-bochs-latest
vgaromimage: file=$root/usr/share/vgabios/vgabios.bin
ata0-master: type=cdrom, path=$guest/guest.iso, status=inserted
boot: cdrom
com1: enabled=1, mode=file, dev=$guest/serial
clock: sync=none, time0=1700000000
log: $guest/bochs.log
panic: action=fatal
END

say "the guest, as it prints (it takes seconds to boot)"
start=$(date +%s)
: > "$guest/serial"
timeout 1800 "$bochs/bochs" -q -f "$guest/bochsrc" < /dev/null > "$guest/bochs.out" 2>&1 &
tail -n +1 -f --pid=$! "$guest/serial"
say "$(($(date +%s) - start)) seconds; all else is in $guest"
grep -q '^the end, status 0' "$guest/serial"
