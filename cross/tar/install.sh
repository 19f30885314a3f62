#!/bin/sh
# Installs Tidegate as a systemd service, or takes it away. For distributions without .deb packages.
#
#   ./install.sh               binary, configuration (an existing one stays), man pages, completions, service
#   ./install.sh --uninstall   takes away what it installed; the buffer and the configuration stay
#
# As root. Running it again is an upgrade: the service is restarted, once.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
# Where the Debian package puts it, so that the package can take over.
unit=/usr/lib/systemd/system/tidegate.service

refuse() {
    echo "install.sh: $*" >&2
    exit 1
}

machine() {
    # The ELF header's machine: which processor this build is for.
    case $(od -An -tx1 -j18 -N1 "$here/tidegate" | tr -d ' ') in
        3e) echo x86_64 ;;
        b7) echo aarch64 ;;
        28) echo arm ;;
    esac
}

may_install() {
    [ "$(id -u)" = 0 ] || refuse "please run it as root: sudo $0${1:+ $1}"
    [ -d /run/systemd/system ] || refuse "this machine was not started by systemd; run $here/tidegate by its own supervisor"
    # Two installations would fight for the same service, and a removed package that is purged one day takes the buffer along.
    if command -v dpkg-query >/dev/null && dpkg-query -W -f='${db:Status-Abbrev}' tidegate 2>/dev/null | grep -q '^[^un]'; then
        refuse "the Debian package tidegate is or was installed here: please use the .deb"
    fi
}

install_all() {
    "$here/tidegate" -V >/dev/null 2>&1 \
        || refuse "the binary for $(machine) does not run here ($(uname -m)); there are others, and static ones (musl)"
    was_running=""
    if systemctl -q is-active tidegate 2>/dev/null; then was_running=yes; fi
    # Beside it and then renamed: the running one is not touched.
    install -m 755 "$here/tidegate" /usr/bin/tidegate.new
    mv /usr/bin/tidegate.new /usr/bin/tidegate
    install -d -m 755 /etc/tidegate /usr/share/doc/tidegate/examples
    if [ -e /etc/tidegate/tidegate.toml ]; then
        install -m 644 "$here/tidegate.toml" /etc/tidegate/tidegate.toml.new
        echo "kept /etc/tidegate/tidegate.toml; this version's own is beside it, as tidegate.toml.new"
    else
        install -m 644 "$here/tidegate.toml" /etc/tidegate/tidegate.toml
    fi
    install -D -m 644 "$here/tidegate.service" "$unit"
    install -m 644 "$here/README.md" "$here/CHANGELOG.md" "$here/LICENSE-MIT" "$here/LICENSE-APACHE" "$here/licences.txt" \
        /usr/share/doc/tidegate/
    cp -R "$here/docs" /usr/share/doc/tidegate/
    if [ -d "$here/examples" ]; then cp -R "$here/examples/." /usr/share/doc/tidegate/examples/; fi
    install -D -m 644 "$here/man/tidegate.1" /usr/share/man/man1/tidegate.1
    install -D -m 644 "$here/man/tidegate.toml.5" /usr/share/man/man5/tidegate.toml.5
    install -D -m 644 "$here/completions/tidegate.bash" /usr/share/bash-completion/completions/tidegate
    install -D -m 644 "$here/completions/_tidegate" /usr/share/zsh/site-functions/_tidegate
    install -D -m 644 "$here/completions/tidegate.fish" /usr/share/fish/vendor_completions.d/tidegate.fish

    systemctl daemon-reload
    if [ -n "$was_running" ]; then
        systemctl restart tidegate
    else
        systemctl enable --now tidegate
    fi
    echo "tidegate $(/usr/bin/tidegate -V | cut -d' ' -f2) is $(systemctl is-active tidegate)."
    echo "Three lines make /etc/tidegate/tidegate.toml yours; it says which. Then: tidegate check && systemctl restart tidegate"
}

uninstall() {
    if [ -e "$unit" ]; then
        systemctl disable --now tidegate || true
        rm -f "$unit"
        systemctl daemon-reload
    fi
    rm -f /usr/bin/tidegate /usr/share/man/man1/tidegate.1 /usr/share/man/man5/tidegate.toml.5 \
        /usr/share/bash-completion/completions/tidegate /usr/share/zsh/site-functions/_tidegate \
        /usr/share/fish/vendor_completions.d/tidegate.fish
    rm -rf /usr/share/doc/tidegate
    echo "Kept: /etc/tidegate and the buffer. To lose what is held: rm -rf /etc/tidegate /var/lib/tidegate /var/lib/private/tidegate"
}

case "${1:-}" in
    "")
        may_install
        install_all
        ;;
    --uninstall)
        may_install "$1"
        uninstall
        ;;
    *)
        sed -n '2,7s/^# \{0,1\}//p' "$0" >&2
        exit 2
        ;;
esac
