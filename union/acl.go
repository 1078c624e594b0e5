package union

import "golang.org/x/sys/unix"

// The xattrs in which the kernel shows ACLs (linux/posix_acl_xattr.h). Our
// process's umask is 0, so that the upper's file system, too, gives what is
// made in a directory with a default ACL the right mode.
const (
	aclAccess  = "system.posix_acl_access"
	aclDefault = "system.posix_acl_default"
)

// inherited is the default ACL of the directory something is made in; nil when
// there is none, or when it does not count for what is made.
func (b birth) inherited(dir int) ([]byte, error) {
	if b.link || b.typ == unix.S_IFLNK {
		return nil, nil
	}
	acl, err := lgetxattrAt(dir, "", aclDefault)
	if err == unix.ENODATA || err == unix.EOPNOTSUPP {
		return nil, nil
	}
	return acl, err
}

// inherit gives a new node, no symlink, what posix_acl_create (fs/posix_acl.c) would:
// the default ACL as its own, a directory also as its default. It returns the
// mode, which has only the permissions that both the ACL and the caller gave;
// setting it puts them into the ACL as well.
func inherit(p string, typ, mode uint32, acl []byte) (uint32, error) {
	if err := unix.Setxattr(p, aclAccess, acl, 0); err != nil {
		return 0, err
	}
	if typ == unix.S_IFDIR {
		if err := unix.Setxattr(p, aclDefault, acl, 0); err != nil {
			return 0, err
		}
	}
	var st unix.Stat_t
	err := unix.Stat(p, &st)
	return mode & (st.Mode&0o777 | 0o7000), err
}
