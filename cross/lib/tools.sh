# The tools of cross/build, each of one version, and what is fixed for every build. Sourced, never run.
# shellcheck shell=bash

zig_version=0.15.2
zigbuild_version=0.24.0
cyclonedx_version=0.5.9
# The oldest glibc that the dynamic binaries meet: Debian 11, Raspberry Pi OS bullseye.
glibc=2.31

tools=${XDG_CACHE_HOME:-$HOME/.cache}/tidegate-cross
venv=$tools/zig-$zig_version-zigbuild-$zigbuild_version
out=target/cross/out

say() { printf '\n\033[1m== %s\033[0m\n' "$*"; }

die() {
    echo "cross/build: $*" >&2
    exit 1
}

packages_missing() {
    local program
    for program in gcc make perl git python3 file xz; do
        command -v "$program" >/dev/null || case $program in
            xz) echo xz-utils ;;
            *) echo "$program" ;;
        esac
    done
    command -v g++ >/dev/null || echo g++
    command -v readelf >/dev/null || echo binutils
    command -v dpkg-deb >/dev/null || echo dpkg
    python3 -c 'import ensurepip' 2>/dev/null || echo python3-venv
}

install_packages() {
    local missing
    missing=$(packages_missing)
    [ -z "$missing" ] && return
    say "installing: ${missing//$'\n'/ }"
    if ! command -v apt-get >/dev/null || [ "$(id -u)" != 0 ]; then
        die "please install: ${missing//$'\n'/ }"
    fi
    apt-get update -qq
    # shellcheck disable=SC2086 # words are wanted
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $missing
}

fetch_tools() {
    command -v cargo >/dev/null || die "please install Rust (https://rustup.rs)"
    if [ ! -x "$venv/bin/cargo-zigbuild" ]; then
        say "zig $zig_version and cargo-zigbuild $zigbuild_version from PyPI"
        mkdir -p "$tools"
        rm -rf "$venv.coming"
        python3 -m venv "$venv.coming"
        "$venv.coming/bin/pip" install -q "ziglang==$zig_version" "cargo-zigbuild==$zigbuild_version"
        # Only a whole one bears the name.
        mv -T "$venv.coming" "$venv"
    fi
    local cyclonedx=$tools/cyclonedx-$cyclonedx_version
    if [ ! -x "$cyclonedx/bin/cargo-cyclonedx" ]; then
        say "cargo-cyclonedx $cyclonedx_version from crates.io"
        cargo install --quiet --locked --version "$cyclonedx_version" --root "$cyclonedx" cargo-cyclonedx
    fi
    export PATH="$venv/bin:$cyclonedx/bin:$PATH"
}

# Sets what depends on the target: triple, the architecture's Debian name, zig's words for it.
describe() {
    target=$1
    local cpu=()
    case ${target%-musl} in
        amd64) machine=x86_64 debian=amd64 zig_machine=x86_64 abi="" ;;
        arm64) machine=aarch64 debian=arm64 zig_machine=aarch64 abi="" ;;
        # As Debian's armhf: ARMv7 with VFP3-D16; NEON is not everywhere.
        armv7) machine=armv7 debian=armhf zig_machine=arm abi=eabihf cpu=(-mcpu=generic+v7a+vfp3-d32+thumb2-neon) ;;
        *) die "no such target: $target (amd64 arm64 armv7, each also with -musl)" ;;
    esac
    libc=gnu zig_libc=gnu$abi.$glibc static=""
    case $target in *-musl) libc=musl zig_libc=musl$abi static=-musl ;; esac
    triple=$machine-unknown-linux-$libc$abi
    zig_flags="-target $zig_machine-linux-$zig_libc ${cpu[*]:-}"
}
