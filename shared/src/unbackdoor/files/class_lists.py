"""Class names of well-known data sets in their usual order, to tell a user which one is missing."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["LISTS", "in_list"]

_CIFAR100 = (
    "apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can castle "
    "caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin elephant "
    "flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster man "
    "maple_tree motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree "
    "plain plate poppy porcupine possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper "
    "snail snake spider squirrel streetcar sunflower sweet_pepper table tank telephone television tiger tractor train "
    "trout tulip turtle wardrobe whale willow_tree wolf woman worm"
)
_MODELNET40 = (
    "airplane bathtub bed bench bookshelf bottle bowl car chair cone cup curtain desk door dresser flower_pot "
    "glass_box guitar keyboard lamp laptop mantel monitor night_stand person piano plant radio range_hood sink sofa "
    "stairs stool table tent toilet tv_stand vase wardrobe xbox"
)
LISTS: dict[str, tuple[str, ...]] = {
    name: tuple(names.split())
    for name, names in {
        "CIFAR-10": "airplane automobile bird cat deer dog frog horse ship truck",
        "STL-10": "airplane bird car cat deer dog horse monkey ship truck",
        "CIFAR-100": _CIFAR100,
        "digits": "zero one two three four five six seven eight nine",
        "Fashion-MNIST": "t-shirt trouser pullover dress coat sandal shirt sneaker bag ankle_boot",
        "ModelNet10": "bathtub bed chair desk dresser monitor night_stand sofa table toilet",
        "ModelNet40": _MODELNET40,
    }.items()
}
"""In the order of the labels that each data set comes with."""

_OTHER_NAMES = {"plane": "airplane", "aeroplane": "airplane", "car": "automobile"}


def in_list(names: Sequence[str]) -> tuple[tuple[str, ...], tuple[str, ...]] | None:
    """``names`` as the list spells them that holds them all, and that list; None where there is none.

    Of several lists, the shortest: the one that the names fill most.
    """
    for known in sorted(LISTS.values(), key=len):
        plain = tuple(_plain(name) for name in names)
        for spelt in (plain, tuple(_OTHER_NAMES.get(name, name) for name in plain)):
            if len(set(spelt)) == len(names) >= 2 and set(spelt) <= set(known):
                return spelt, known
    return None


def _plain(name: str) -> str:
    return name.strip().lower().replace(" ", "_")
