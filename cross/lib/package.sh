# From the binary to the .deb, the .tar.gz, the checksums and the SBOM. Sourced by cross/build.
#
# Plain dpkg-deb, no helper: nothing to compile first, and the same bytes from the same tree. The maintainer scripts are
# debhelper's, less what this package does not need.
# shellcheck shell=bash

commit_facts() {
    version=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -1)
    commit_time=$(git log -1 --format=%ct)
    TIDEGATE_COMMIT=$(git rev-parse --short=12 HEAD)
    [ -z "$(git status --porcelain --untracked-files=no)" ] || TIDEGATE_COMMIT+=", changed since"
}

build_packages() {
    local work=$PWD/target/cross/stage/$target
    # `+` sorts a static package after the dynamic one of its version and before the next version.
    stem=tidegate_$version${static:++musl}_$debian
    rm -rf "$work"
    mkdir -p "$work" "$out"
    rm -f "$out/$stem".*
    umask 022
    build_sbom
    python3 cross/lib/licences.py "$triple" >"$work/licences"
    build_deb "$work/deb"
    build_tar "$work/$stem"
    (cd "$out" && sha256sum "$stem.deb" "$stem.tar.gz" "$stem.cdx.json" >"$stem.sha256")
}

put() { # MODE SOURCE DESTINATION
    install -D -m "$1" "$2" "$3"
}

put_gz() { # SOURCE DESTINATION
    mkdir -p "$(dirname "$2")"
    gzip -9n <"$1" >"$2"
}

put_docs() { # DESTINATION
    local file
    for file in docs/*.md; do put 644 "$file" "$1/${file#docs/}"; done
}

# What the unit's author wants to be found beside it: drop-ins, and the lines that mosquitto needs.
put_examples() { # DESTINATION
    local file
    while read -r file; do
        put 644 "systemd/$file" "$1/$file"
    done < <(cd systemd && find . -type f ! -name tidegate.service -printf '%P\n' | LC_ALL=C sort)
    put 644 config/mosquitto.conf.example "$1/mosquitto.conf.example"
}

build_deb() {
    local root=$1 doc=$1/usr/share/doc/tidegate work
    work=$(dirname "$1")
    put 755 "$binary" "$root/usr/bin/tidegate"
    put 644 config/tidegate.toml "$root/etc/tidegate/tidegate.toml"
    put 644 systemd/tidegate.service "$root/usr/lib/systemd/system/tidegate.service"
    put 644 cross/completions/tidegate.bash "$root/usr/share/bash-completion/completions/tidegate"
    put 644 cross/completions/_tidegate "$root/usr/share/zsh/vendor-completions/_tidegate"
    put 644 cross/completions/tidegate.fish "$root/usr/share/fish/vendor_completions.d/tidegate.fish"
    put_gz cross/man/tidegate.1 "$root/usr/share/man/man1/tidegate.1.gz"
    put_gz cross/man/tidegate.toml.5 "$root/usr/share/man/man5/tidegate.toml.5.gz"
    put 644 README.md "$doc/README.md"
    put_docs "$doc/docs"
    put 644 cross/deb/copyright "$doc/copyright"
    put_gz "$work/licences" "$doc/licences.txt.gz"
    deb_changelog >"$work/changelog"
    put_gz "$work/changelog" "$doc/changelog.gz"
    put_examples "$doc/examples"

    [ -z "$static" ] || put 644 cross/deb/lintian-overrides.static "$root/usr/share/lintian/overrides/tidegate"

    mkdir -p "$root/DEBIAN"
    echo /etc/tidegate/tidegate.toml >"$root/DEBIAN/conffiles"
    local script
    for script in postinst prerm postrm; do put 755 "cross/deb/$script" "$root/DEBIAN/$script"; done
    (cd "$root" && find . -type f ! -path './DEBIAN/*' ! -path './etc/*' -printf '%P\0' | LC_ALL=C sort -z \
        | xargs -0 md5sum) >"$root/DEBIAN/md5sums"
    deb_control "$root" >"$root/DEBIAN/control"
    find "$root" -exec touch -h -d "@$commit_time" {} +
    # One thread: how many there are must not show in the bytes.
    SOURCE_DATE_EPOCH=$commit_time dpkg-deb --root-owner-group -Zxz -z9 -Sextreme --threads-max=1 \
        --build "$root" "$out/$stem.deb" >/dev/null
}

deb_control() {
    # As dpkg-gencontrol counts: every file in whole KiB, one for a folder.
    local size
    size=$(cd "$1" && find . ! -path './DEBIAN*' -printf '%y %s\n' \
        | awk '{ kib += $1 == "f" ? int(($2 + 1023) / 1024) : 1 } END { print kib }')
    cat <<END
Package: tidegate
Version: $version${static:++musl}
Architecture: $debian
Maintainer: Tidegate maintainers <maintainers@tidegate.invalid>
Installed-Size: $size
END
    [ -n "$static" ] || echo "Depends: libc6 (>= $glibc)"
    cat <<END
Section: net
Priority: optional
Description: MQTT to Kafka for edge devices, with a durable buffer
 Tidegate takes sensor readings from MQTT, makes each durable on the device
 before it acknowledges it, and forwards them to Apache Kafka whenever the link
 allows. Nothing but Kafka's own confirmation takes a reading out of the buffer.
 .
 It is made for gateways of the Raspberry Pi class with an SD card and a bad
 uplink, and runs as a sandboxed systemd service.
END
    [ -z "$static" ] || printf ' .\n This build is linked statically and needs no C library on the device.\n'
}

# Debian's form of what CHANGELOG.md says of this version.
deb_changelog() {
    printf 'tidegate (%s) stable; urgency=medium\n\n' "$version${static:++musl}"
    awk -v version="$version" '
        /^## / { on = index($2, version) == 1; next }
        on && /^\* / { if (item) print item; item = $0; next }
        on && /^  / { sub(/^ +/, ""); item = item " " $0; next }
        END { if (item) print item }
    ' CHANGELOG.md | sed 's/`//g' | while read -r item; do fold -s -w 74 <<<"$item" | sed 's/ *$//; 1s/^/  /; 2,$s/^/    /'; done
    printf '\n -- Tidegate maintainers <maintainers@tidegate.invalid>  %s\n' "$(LC_ALL=C date -uRd "@$commit_time")"
}

build_tar() {
    local root=$1
    put 755 "$binary" "$root/tidegate"
    put 755 cross/tar/install.sh "$root/install.sh"
    put 644 config/tidegate.toml "$root/tidegate.toml"
    put 644 systemd/tidegate.service "$root/tidegate.service"
    put 644 cross/man/tidegate.1 "$root/man/tidegate.1"
    put 644 cross/man/tidegate.toml.5 "$root/man/tidegate.toml.5"
    local file
    for file in tidegate.bash _tidegate tidegate.fish; do put 644 "cross/completions/$file" "$root/completions/$file"; done
    for file in README.md CHANGELOG.md LICENSE-APACHE LICENSE-MIT; do put 644 "$file" "$root/$file"; done
    put 644 "$(dirname "$root")/licences" "$root/licences.txt"
    put_docs "$root/docs"
    put_examples "$root/examples"
    tar --sort=name --format=gnu --owner=0 --group=0 --numeric-owner --mtime="@$commit_time" --mode=go-w \
        -C "$(dirname "$root")" -cf - "$stem" | gzip -9n >"$out/$stem.tar.gz"
}

# Every crate, and by their versions the C libraries in them: openssl-src, which is a dependency of a build script only,
# rdkafka-sys, zstd-sys, libsqlite3-sys.
build_sbom() {
    local name=tidegate-sbom-$target
    SOURCE_DATE_EPOCH=$commit_time cargo cyclonedx --quiet --format json --spec-version 1.5 \
        --target "$triple" --override-filename "$name"
    # It names the folder of the sources.
    sed "s|file://$PWD|file:///tidegate|g" "$name.json" >"$out/$stem.cdx.json"
    # It writes one for each package of the workspace.
    find . -path ./target -prune -o -name "$name.json" -exec rm {} +
}
