# What came out, and whether it keeps what is promised of it. Sourced by cross/build.
# shellcheck shell=bash

# For mobile links and small flash.
max_deb_bytes=5000000
max_binary_bytes=$((14 << 20))

report() {
    local needs libraries highest deb=$out/$stem.deb tar=$out/$stem.tar.gz
    needs=$(readelf -W --version-info "$binary" | grep -o 'GLIBC_[0-9.]*' | sort -Vu | tail -1 || true)
    libraries=$(readelf -d "$binary" | sed -n 's/.*(NEEDED).*\[\(.*\)\]/\1/p' | tr '\n' ' ')
    printf 'version    %s\n' "$version ($TIDEGATE_COMMIT)"
    printf 'compiler   %s, zig %s\n' "$(rustc --version)" "$zig_version"
    printf 'binary     %s bytes\n' "$(stat -c %s "$binary")"
    printf 'package    %s bytes\n' "$(stat -c %s "$deb")"
    printf 'archive    %s bytes\n' "$(stat -c %s "$tar")"
    printf 'glibc      %s\n' "${needs:-none}"
    printf 'libraries  %s\n' "${libraries:-none}"
    printf 'SHA-256    %s  tidegate\n' "$(sha256sum <"$binary" | cut -d' ' -f1)"
    sed 's/^/           /' "$out/$stem.sha256"

    # As in the table of README.
    awk -v name="$stem.deb" -v binary="$(stat -c %s "$binary")" -v deb="$(stat -c %s "$deb")" \
        'BEGIN { printf "README     | `%s` | %.1f MB | %.1f MB |\n", name, binary / 1e6, deb / 1e6 }'

    local wrong=""
    if [ -n "$static" ]; then
        [ -z "$needs$libraries" ] || wrong+="; it is not static"
    else
        highest=$(printf '%s\nGLIBC_%s\n' "$needs" "$glibc" | sort -V | tail -1)
        [ "$highest" = "GLIBC_$glibc" ] || wrong+="; it needs a newer glibc than $glibc"
        case $libraries in *libgcc_s* | *libstdc* | *libssl* | *libz*) wrong+="; it needs a library that Depends does not name" ;; esac
    fi
    [ "$(stat -c %s "$binary")" -le "$max_binary_bytes" ] || wrong+="; the binary is larger than $max_binary_bytes bytes"
    [ "$(stat -c %s "$deb")" -le "$max_deb_bytes" ] || wrong+="; the package is larger than $max_deb_bytes bytes"
    # Not `strings | grep -q`: the end of grep would end strings, and pipefail take that for "not found".
    if grep -qE "$PWD|$HOME/" <(strings -n 6 "$binary"); then wrong+="; it names a folder of this machine"; fi
    [ -z "$wrong" ] || die "$target: ${wrong#; }"
}
