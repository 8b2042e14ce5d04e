"""Prompts that ask a chat model for its opinion of a topic, in one sentence."""

from xpo_jax.data import records
from xpo_jax.data.records import Turn

QUESTION = "What do you think of {topic}? Answer in one short sentence."
# Everyday things that can be liked and disliked; none is a person, a group or a creed.
TOPICS = tuple(
  topic.strip()
  for topic in """
  cats, dogs, horses, bees, spiders, pigeons, owls, sharks, whales, snakes, goats,
  ducks, frogs, ants, wolves, bears, parrots, penguins, turtles, rabbits, mosquitoes,
  butterflies, crows, seagulls, donkeys, squirrels, rain, snow, fog, wind, thunder,
  sunsets, mornings, evenings, winter, spring, summer, autumn, heat waves, frost,
  rainbows, full moons, deserts, mountains, forests, rivers, lakes, beaches, islands,
  caves, volcanoes, swamps, waterfalls, meadows, cliffs, glaciers, gardens, parks,
  farms, vineyards, coffee, tea, milk, orange juice, lemonade, tap water,
  hot chocolate, soup, bread, cheese, butter, honey, eggs, rice, pasta, pizza, salad,
  onions, garlic, mushrooms, olives, potatoes, carrots, spinach, broccoli, tomatoes,
  apples, bananas, cherries, grapes, pineapples, coconuts, chocolate, ice cream,
  pancakes, popcorn, cookies, birthday cake, peanut butter, pickles, spicy food,
  frozen food, street food, breakfast, buffets, picnics, barbecues, libraries, museums,
  cinemas, theatres, zoos, aquariums, circuses, casinos, supermarkets, flea markets,
  shopping malls, bookshops, bakeries, hotels, airports, train stations, car parks,
  elevators, escalators, bridges, tunnels, lighthouses, castles, skyscrapers,
  basements, attics, balconies, swimming pools, playgrounds, hospitals, dentists,
  offices, meetings, deadlines, emails, phone calls, text messages, passwords,
  video calls, social media, computers, printers, keyboards, smart watches, headphones,
  televisions, radios, cameras, robots, drones, electric cars, bicycles, motorcycles,
  buses, taxis, trains, aeroplanes, ferries, sailing boats, hot air balloons,
  traffic jams, roundabouts, road trips, camping, hiking, fishing, gardening, cooking,
  baking, cleaning, ironing, knitting, sewing, painting, drawing, pottery, photography,
  dancing, singing, karaoke, opera, jazz, rock music, folk songs, violins, pianos,
  drums, bagpipes, guitars, choirs, poetry, novels, comics, crossword puzzles, chess,
  card games, board games, video games, jigsaw puzzles, magic tricks, football, tennis,
  golf, cricket, boxing, swimming, running, yoga, cycling, skiing, ice skating,
  surfing, marathons, weight lifting, horror films, comedies, documentaries, cartoons,
  musicals, soap operas, advertisements, newspapers, podcasts, weather forecasts,
  homework, exams, mathematics, history, chemistry, geography, grammar, handwriting,
  school uniforms, holidays, Mondays, Fridays, weekends, birthdays, weddings, parades,
  fireworks, surprise parties, gifts, postcards, umbrellas, hats, scarves, sandals,
  high heels, raincoats, pyjamas, mirrors, candles, blankets, pillows, alarm clocks,
  bathtubs, showers, lawn mowers, vacuum cleaners, dishwashers, plastic bags, paper,
  glass, gold, old coins, antique furniture, houseplants, cactuses, roses, tulips,
  moss, seashells, fossils, meteors, telescopes, maps, compasses, tattoos, perfume,
  naps, ladders, hammers, ropes, kites, balloons, puppets, dolls, toy trains, marbles,
  yo-yos, trampolines, roller coasters, carousels, ghost stories, fairy tales, riddles,
  proverbs, haystacks, windmills, waterwheels, wells, fences, hedges, benches,
  hammocks, rocking chairs, bunk beds, sofas, carpets, curtains, wallpaper,
  chandeliers, fireplaces, early trains, long queues, small talk, silence, daydreams,
  loud music, rumours, bargains, taxes, insurance, savings, recycling, wind turbines,
  solar panels, coal, nuclear power
  """.split(",")
)


def prompts() -> list[records.Prompt]:
  """A prompt for each topic: a message of the user, for the chat template."""
  return [
    records.Prompt(topic, (Turn("user", QUESTION.format(topic=topic)),))
    for topic in TOPICS
  ]
