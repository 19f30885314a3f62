# From the sources to one stripped binary. Sourced by cross/build.
# shellcheck shell=bash

# Cargo does not see how C is compiled: raise the number when that changes, and it is compiled anew.
build_dir=$PWD/target/cross/build-1

# The C compiler of the target, under a name without a folder: OpenSSL writes the command that compiled it into the
# library. It also writes the folder where it was compiled, as the place where engines and modules are looked for;
# they are not installed, and such a folder must be nobody's but root's: OpenSSL's own default takes its place.
write_compilers() {
    local bin=$tools/bin
    mkdir -p "$bin"
    # Nothing unwinds through C: a panic aborts.
    local no_tables="-fno-unwind-tables -fno-asynchronous-unwind-tables"
    local language name
    for language in cc c++; do
        name=tidegate-$target-$language
        cat >"$bin/$name.$$" <<END
#!/usr/bin/env bash
export CARGO_ZIGBUILD_ZIG_VERSION=$zig_version CARGO_ZIGBUILD_ZIG_COMMAND=$venv/bin/python3
export CARGO_ZIGBUILD_ZIG_COMMAND_ARGS="-m ziglang"
# zig refuses its own word for the target here, and librdkafka's configure would take the gcc of this machine.
[ "\$*" != --version ] || exec $venv/bin/python3 -m ziglang $language --version
arguments=()
for argument; do
    case \$argument in
        -DENGINESDIR=*) argument='-DENGINESDIR="/usr/local/lib/engines-3"' ;;
        -DMODULESDIR=*) argument='-DMODULESDIR="/usr/local/lib/ossl-modules"' ;;
        # OpenSSL: small. What is hot in it is assembly.
        -DOPENSSL_PIC) arguments+=(-Os) ;;
    esac
    arguments+=("\$argument")
done
exec $venv/bin/cargo-zigbuild zig $language -- -fno-sanitize=all $zig_flags "\${arguments[@]}" -g0 $no_tables
END
        chmod +x "$bin/$name.$$"
        mv "$bin/$name.$$" "$bin/$name"
    done
    for name in ar ranlib; do
        printf '#!/bin/sh\nexec %s -m ziglang %s "$@"\n' "$venv/bin/python3" "$name" >"$bin/tidegate-$name.$$"
        chmod +x "$bin/tidegate-$name.$$"
        mv "$bin/tidegate-$name.$$" "$bin/tidegate-$name"
    done
}

build_binary() {
    cross_cargo zigbuild --profile dist --bin tidegate
    binary=$build_dir/$triple/dist/tidegate
}

# `zigbuild` or `test` of cargo-zigbuild, with the target's compilers.
cross_cargo() { # COMMAND ARGUMENT...
    local std=()
    if [ -n "${TIDEGATE_BUILD_STD:-}" ]; then
        # For a Rust without this target's standard library; it wants the component rust-src.
        std=(-Zbuild-std=std,panic_abort)
        export RUSTC_BOOTSTRAP=1
    elif command -v rustup >/dev/null && ! rustup target list --installed | grep -qx "$triple"; then
        rustup target add "$triple"
    fi
    write_compilers
    local cc=tidegate-$target-cc cxx=tidegate-$target-c++ under=${triple//-/_}
    local sources=${CARGO_HOME:-$HOME/.cargo}/registry/src
    # No folder of this machine in the binary: not of panics' places either. Where the component rust-src is installed,
    # rustc would name that for places in the standard library; elsewhere it names it as here.
    local library
    library=$(rustc --print sysroot)/lib/rustlib/src/rust
    local flags=(
        "--remap-path-prefix=$PWD=/tidegate"
        "--remap-path-prefix=$build_dir=/tidegate/target"
        "--remap-path-prefix=$(echo "$sources"/*/)=/crates/"
        "--remap-path-prefix=$library=/rustc/$(rustc -vV | sed -n 's/^commit-hash: //p')"
    )
    [ -z "$static" ] || flags+=(-Clink-self-contained=no)
    local zig_triple=$triple
    [ -n "$static" ] || zig_triple=$triple.$glibc
    local joined
    joined=$(printf '\x1f%s' "${flags[@]}")
    (
        export PATH="$tools/bin:$PATH"
        export CARGO_TARGET_DIR=$build_dir CARGO_ENCODED_RUSTFLAGS=${joined:1}
        export CARGO_ZIGBUILD_CACHE_DIR=$tools ZIG_GLOBAL_CACHE_DIR=$tools/zig ZIG_LOCAL_CACHE_DIR=$tools/zig
        export "CC_$under=$cc" "CXX_$under=$cxx" "AR_$under=tidegate-ar" "RANLIB_$under=tidegate-ranlib"
        # librdkafka's own configure looks for these; build scripts run on this machine.
        export CC=$cc CXX=$cxx AR=tidegate-ar RANLIB=tidegate-ranlib LD=ld NM=nm OBJDUMP=objdump STRIP=strip
        # It also links a shared library, which nobody wants, from a list of names that lld takes more seriously than ld.
        export LDFLAGS=-Wl,--undefined-version
        # What is installed on this machine is not for the device.
        export PKG_CONFIG=false
        export HOST_CC=gcc HOST_CXX=g++ HOST_AR=ar HOST_RANLIB=ranlib
        # OpenSSL writes the date into itself. It is compiled once for many commits, so it is not the commit's.
        export SOURCE_DATE_EPOCH=0
        export OPENSSL_CONFIG_DIR=/usr/local/ssl
        # The everyday build leaves out parts of OpenSSL and librdkafka (.cargo/config.toml); what is packaged has all of them.
        export OPENSSL_SRC_PERL=perl GNUMAKEFLAGS=
        export TIDEGATE_COMMIT
        cargo-zigbuild "$1" --locked --target "$zig_triple" "${std[@]}" "${@:2}"
    )
}
